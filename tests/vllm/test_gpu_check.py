"""The check for GPUs, with a tiny model on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vllm import gpu_check, tiny
from tests.vllm.conftest import loaded
from tests.vllm.driver import Driver

FIRST_CALL_S, PREFILL_S, DECODE_S = 100.0, 1.0, 0.25  # of a prompt, and of a token of all prompts


@pytest.mark.timeout(600)
def test_the_check_measures_texts_and_passes_beside_plain_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # plain vLLM else takes nearly all memory
    folder = tiny.save(tiny.llama(), tmp_path)
    check = gpu_check.Check(
        folder, tiny.VOCABULARY, "float32", ("--enforce-eager",), contexts=(64, 200), num_sessions=(1, 4), num_repeats=4
    )
    assert gpu_check.measure(check)
    lines = capfd.readouterr().out.splitlines()
    assert "16 of 16 texts of 64 tokens are equal with guesses and without" in lines
    rows = [line.split() for line in lines if line.split()[:1] in (["1"], ["4"])]
    assert [(int(row[0]), int(row[1]), int(row[2])) for row in rows] == [
        (num, context, guesses) for context in (64, 200) for num in (1, 4) for guesses in (0, 1, 4)
    ]
    assert all(float(row[3]) > 0 for row in rows)
    assert all(float(row[4]) > 0 for row in rows if row[2] == "0")
    assert "expected: 100% or more, and gaps below 1.0" in lines


@pytest.mark.timeout(600)
def test_sessions_whose_kv_cache_does_not_fit_are_not_timed(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(), tmp_path)
    check = gpu_check.Check(folder, tiny.VOCABULARY, num_repeats=4)
    flags = f"{tiny.FLAGS} --num-gpu-blocks-override 9"  # at 128 tokens a block
    with loaded(folder, vllm_args=flags) as engine:
        driver = Driver(engine)
        assert gpu_check.pass_ms(driver, check, 2, 100, 1) is not None
        assert gpu_check.pass_ms(driver, check, 6, 200, 1) is None
        assert gpu_check.pass_ms(driver, check, 2, 100, 1) is not None


@pytest.mark.timeout(600)
def test_the_gap_after_a_text_is_that_of_its_two_best_tokens(tmp_path: Path) -> None:
    folder = tiny.save(tiny.llama(), tmp_path)
    with loaded(folder, vllm_args=tiny.FLAGS) as engine:
        driver = Driver(engine)
        text = list(range(3, 43))
        (highest, second) = tiny.top_logits(folder, text)
        assert gpu_check.top_gap(driver, text) == pytest.approx(highest - second, abs=1e-3)


@pytest.mark.parametrize(
    ("gap", "num_different", "dtype", "is_good"),
    [(0.2, 1, "bfloat16", True), (1.5, 1, "bfloat16", False), (0.2, 9, "bfloat16", False), (0.2, 1, "float32", False)],
)
def test_texts_may_differ_only_at_near_ties_and_only_where_the_numerics_do(
    gap: float,
    num_different: int,
    dtype: str,
    is_good: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = [[number, 7] for number in range(gpu_check.NUM_TEXTS)]
    other = [[number, 8 if number < num_different else 7] for number in range(gpu_check.NUM_TEXTS)]
    driver: Any = SimpleNamespace(
        answers=lambda *_: alone,
        opens_new=lambda request: SimpleNamespace(state=SimpleNamespace(session_id=request.session_id)),
        finish=lambda *_, **__: None,
        close=lambda *_: None,
    )
    texts = iter(other)
    monkeypatch.setattr("tests.vllm.driver.answer_of", lambda _: next(texts))
    monkeypatch.setattr(gpu_check, "top_gap", lambda *_: gap)
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    assert gpu_check.check_texts(driver, gpu_check.Check(Path(), 100, dtype)) is is_good
    assert f"differs from token 1 on: gap of the two best logits {gap:.2e}" in capsys.readouterr().out


def test_plain_vllms_time_of_a_token_has_no_part_of_prompts_and_of_the_first_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr("vllm.LLM", lambda **options: PlainEngine(clock, options))
    prompts = {"64": [[number] * 64 for number in range(4)], "128": [[number] * 128 for number in range(4)]}
    gpu_check.time_plain("any", ["--dtype", "float32"], prompts, (1, 4))
    found = json.loads(capsys.readouterr().out)
    assert found == {f"{num} x {context}": DECODE_S * 1e3 for num in (1, 4) for context in (64, 128)}


class PlainEngine:
    """vLLM's engine with a clock of its own: it takes longer in its first call, and caches prompts if it may."""

    def __init__(self, clock: SimpleNamespace, options: dict[str, Any]) -> None:
        self._clock, self._caches = clock, options.get("enable_prefix_caching", True)
        self._seen: set[tuple[int, ...]] = set()
        clock.now += FIRST_CALL_S

    def generate(self, prompts: Sequence[dict[str, list[int]]], params: Any, use_tqdm: bool) -> None:
        del use_tqdm
        texts = {tuple(prompt["prompt_token_ids"]) for prompt in prompts}
        self._clock.now += 0.0 if self._seen else FIRST_CALL_S
        self._clock.now += PREFILL_S * len(texts - self._seen if self._caches else texts)
        self._clock.now += DECODE_S * params.max_tokens
        self._seen |= texts


def test_without_a_gpu_it_says_why_it_is_not_run() -> None:
    assert gpu_check.why_not() == "there is no CUDA device"
