"""vLLM's flags: what passes through, what is refused and in whose words, and what a CPU gets."""

from __future__ import annotations

import os
import shlex

import pytest
from vllm import EngineArgs

from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.vllm_engine.flags import CPU_KV_GIB, OWNED, REFUSED, engine_args

KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
CHOSEN = {  # a value of each refused flag that is not vLLM's default
    "model": "--model other",
    "served_model_name": "--served-model-name other",
    "dtype": "--dtype float16",
    "max_num_seqs": "--max-num-seqs 7",
    "max_num_batched_tokens": "--max-num-batched-tokens 77",
    "long_prefill_token_threshold": "--long-prefill-token-threshold 7",
    "scheduling_policy": "--scheduling-policy priority",
    "scheduler_cls": "--scheduler-cls other.Scheduler",
    "worker_cls": "--worker-cls other.Worker",
    "speculative_config": """--speculative-config '{"method": "ngram", "num_speculative_tokens": 2}'""",
    "async_scheduling": "--async-scheduling",
    "enable_lora": "--enable-lora",
    "pipeline_parallel_size": "--pipeline-parallel-size 2",
}


@pytest.fixture(autouse=True)
def no_kv_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the variable afterwards, too."""
    monkeypatch.setenv(KV_SPACE, "")
    monkeypatch.delenv(KV_SPACE)


def args_of(flags: str = "", **settings: object) -> EngineArgs:
    return engine_args(VerifierSettings(target="any", engine="vllm", vllm_args=flags, **settings))


def refusal_of(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_of:
        args_of(flags)
    assert exit_of.value.code == 2
    return capsys.readouterr().err


def test_vllms_own_flags_pass_through_beside_what_the_settings_say() -> None:
    args = args_of(
        "--tensor-parallel-size 2 --max-model-len 4096",
        model_name="m",
        dtype="float16",
        max_sessions=9,
        token_budget=99,
    )
    assert (args.tensor_parallel_size, args.max_model_len) == (2, 4096)
    assert (args.model, args.served_model_name, args.dtype) == ("any", ["m"], "float16")
    assert (args.max_num_seqs, args.max_num_batched_tokens) == (9, 99)


def test_no_pass_is_as_long_as_the_one_that_vllm_tries_before_prompts_have_their_threads() -> None:
    assert args_of(max_sessions=9, token_budget=99, prefill_threads=2).max_num_batched_tokens == 100


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--no-such-flag 3", "vllm: error: unrecognized arguments: --no-such-flag 3"),
        ("--tensor-parallel-size two", "vllm: error: argument --tensor-parallel-size/-tp: invalid int value: 'two'"),
        ("--kv-cache-dtype fp3", "vllm: error: argument --kv-cache-dtype: invalid choice: 'fp3'"),
    ],
)
def test_an_unknown_flag_or_value_is_refused_in_vllms_words(
    flags: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal_of(flags, capsys)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_flag_that_dsd_does_not_pass_on_is_refused_with_what_to_do(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refusal_of(CHOSEN[name], capsys).splitlines()
    flag = shlex.split(CHOSEN[name])[0]
    assert line.startswith(f"python -m services.cloud_verifier: {flag}")
    if name in REFUSED:
        assert line.endswith(f"{flag}: {REFUSED[name]}")
    else:
        assert line.endswith(f"to vLLM: use {OWNED[name]}" if OWNED[name] else "to vLLM: DSD decides it")


def test_no_flag_is_refused_that_is_not_tested_here() -> None:
    assert OWNED.keys() | REFUSED.keys() == CHOSEN.keys()


def test_an_owned_flag_at_vllms_default_is_no_choice() -> None:
    assert args_of("--pipeline-parallel-size 1 --scheduling-policy fcfs").pipeline_parallel_size == 1


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [
        ("", None, str(CPU_KV_GIB)),
        ("", "5", "5"),
        ("--gpu-memory-utilization 0.3", None, None),
        ("--kv-cache-memory-bytes 1000000", None, None),
    ],
)
def test_a_cpu_gets_a_small_kv_cache_unless_another_is_chosen(
    flags: str, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv(KV_SPACE, given)
    args_of(flags)
    assert os.environ.get(KV_SPACE) == expected
