"""A verifier's flags: its own, and those for vLLM."""

from __future__ import annotations

import shlex

import pytest

from services.cloud_verifier.settings import VerifierSettings, with_vllm_args
from shared.runtime.config import BadSettings, read

VLLM = ["--engine", "vllm", "--target", "folder"]


def settings(*argv: str) -> VerifierSettings:
    return read(VerifierSettings, with_vllm_args(argv), "verifier")


def test_flags_that_are_not_the_verifiers_own_go_to_vllm_with_their_values() -> None:
    flags = ["--tensor-parallel-size", "2", "--enable-lora", "--hf-overrides", '{"a": 1}', "--quantization=fp8"]
    found = settings(*VLLM, *flags, "--token_budget", "512", "--name=v")
    assert (found.token_budget, found.name, found.target) == (512, "v", "folder")
    assert shlex.split(found.vllm_args) == [*flags[:-1], "--quantization", "fp8"]


def test_vllms_flags_may_come_from_the_environment_a_setting_and_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSD_ENGINE", "vllm")
    monkeypatch.setenv("DSD_VLLM_ARGS", "--max-model-len 99")
    found = settings("--target=folder", "--vllm-args", "--enable-lora --seed 3", "--dtype", "float16", "--seed", "4")
    assert found.vllm_args == "--max-model-len 99 --enable-lora --seed 3 --seed 4"
    assert found.dtype == "float16"
    assert settings("--target", "folder").vllm_args == "--max-model-len 99"


def test_model_is_vllms_name_of_the_target() -> None:
    assert settings("--engine=vllm", "--model", "folder").target == "folder"
    assert settings("--engine=vllm", "--model=folder").target == "folder"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--target", "x", "--tensor-parallel-size", "2"], "unrecognized arguments: --tensor-parallel-size"),
        (["--target", "x", "--vllm-args=--seed 2"], "vllm_args is not for engine torch"),
        (["--target", "x", "--prefill-threads", "2"], "prefill_threads is not for engine torch"),
        ([*VLLM, "--device", "cuda"], "device is not for engine vllm"),
        ([*VLLM, "--kv-tokens", "4096"], "kv_tokens is not for engine vllm"),
        (["--target", "x", "--dtype", "float16"], "dtype float16 is not for engine torch"),
        (["--engine", "other", "--target", "x"], "--engine"),
    ],
)
def test_a_flag_of_the_other_engine_is_refused_by_its_name(argv: list[str], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        settings(*argv)
