"""Errors of predictions, their limits, and the results that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benchmarks.harness.files import read_result, write_result
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.__main__ import code_of, path_of, profile_path, results_of, run_case, unfinished
from benchmarks.validation.cases import INT4, Case
from benchmarks.validation.live import LiveSystem, Phase
from benchmarks.validation.prediction import error_of
from benchmarks.validation.report import describe, differences, markdown, summaries, table
from benchmarks.validation.results import CaseResult
from tests.benchmarks.validation.sample_case import (
    ALONE,
    CASE,
    CODE,
    ORIGIN,
    OTHER,
    PROFILE,
    phase,
    prediction,
    result,
    sample,
)


def test_an_error_is_relative_to_the_live_figure() -> None:
    found = prediction(tpot_ms=1.1, ttft_ms=0.8)
    assert error_of(found.figures("tpot_ms")) == pytest.approx(0.1)
    assert error_of(found.figures("ttft_ms")) == pytest.approx(-0.2)
    assert error_of(found.figures("queue")) == 0


def test_the_speed_up_is_over_the_mean_of_the_target_only_answers_before_and_after_the_case() -> None:
    found = prediction(tpot_ms=1.1)
    assert found.figures("speed_up") == pytest.approx((40.0 / 20.0, 40.0 / 22.0))
    assert found.beside_figures("tpot_ms") == (40.0, 40.0)
    assert found.beside_figures("guesses") is None
    slower = replace(found, beside=[replace(ALONE, tpot_ms=44.0), ALONE])
    assert error_of(slower.beside_figures("tpot_ms")) == pytest.approx(0.05)
    assert error_of(slower.figures("speed_up")) == pytest.approx(1.05 / 1.1 - 1)


def test_medians_the_worst_and_the_bias_are_of_the_cases_that_count() -> None:
    names, factors = ("a", "b", "c", "void"), (1.02, 0.89, 1.04, 2.0)
    found = [prediction(replace(CASE, name=name), tpot_ms=factor) for name, factor in zip(names, factors, strict=True)]
    found[3] = replace(found[3], result=result(complaints=["pass failed"]))
    tpot = next(each for each in summaries(found) if each.figure == "tpot_ms")
    assert (tpot.median.value, tpot.worst) == pytest.approx((0.04, 0.11))
    assert (tpot.median.low, tpot.median.high) == pytest.approx((0.02, 0.11))
    assert tpot.worst_case == "b"
    assert tpot.bias.value == pytest.approx((0.02 - 0.11 + 0.04) / 3)
    assert tpot.holds
    assert summaries(found[3:]) == []


def test_target_only_answers_beside_the_cases_count_apart() -> None:
    known = prediction(tpot_ms=1.01)
    found = [known, replace(prediction(OTHER), beside=[replace(ALONE, tpot_ms=60.0)] * 2)]
    by_part = (summaries(found), summaries(found, beside=True))
    worst = [next(each for each in part if each.figure == "tpot_ms").worst for part in by_part]
    assert worst == pytest.approx([0.01, 0.5])
    text = markdown(found, [], ORIGIN)
    assert f"| TPOT, ms | 25.0% | 50.0% | +25.0% | {OTHER.name} |" in text
    assert "| other | 40.0 → 60.0 (+50.0%) | 25.0 → 25.0 (+0.0%) | 90 → 90 (+0.0%) | 38.0 and 42.0 |" in text
    assert "Errors above the limit" not in text


def test_a_bias_beyond_its_limit_fails_although_each_error_is_small() -> None:
    found = [replace(prediction(), beside=[replace(ALONE, tpot_ms=41.6)] * 2) for _ in range(3)]
    assert not next(each for each in summaries(found) if each.figure == "speed_up").holds


def test_an_error_above_its_limit_is_listed_with_the_differences_of_its_run() -> None:
    found = [prediction(tpot_ms=1.2)]
    assert not next(each for each in summaries(found) if each.figure == "tpot_ms").holds
    text = markdown(found, ["lost"], ORIGIN)
    assert "Without a result: lost." in text
    because = "passes +4.0%; TPOT of the target-only answers beside it +0.0%; draft steps -1.0%"
    assert f"* `test`, TPOT, ms: 20.0 → 24.0 (+20.0%); {because}" in text
    assert (
        "| TPOT, ms | 20.0% (20.0% to 20.0%) | 5% | 20.0% | 12% | +20.0% (+20.0% to +20.0%) |  | test | **no** |"
        in text
    )
    assert "round trip 1.5 ms beyond the link" in differences(found[0])
    assert ORIGIN.command in text


def test_the_throughput_of_an_open_loop_does_not_count() -> None:
    given = replace(CASE, name="open", load=replace(CASE.load, num_clients=0, rate_per_s=1.0))
    found = [prediction(tokens_per_s=1.04), prediction(given, tokens_per_s=1.5)]
    throughput = next(each for each in summaries(found) if each.figure == "tokens_per_s")
    assert throughput.worst == pytest.approx(0.04)
    assert describe(found[1], "tokens_per_s") == ""


def test_void_cases_are_marked() -> None:
    found = [prediction(complaints=["verifier-0: pass failed"])]
    assert "| test **void**: verifier-0: pass failed |" in markdown(found, [], ORIGIN)
    assert next(iter(table(found).columns[0].cells)) == "test (void)"


class Machine:
    """Answers whose tokens without drafts take these times, in milliseconds, in turn."""

    def __init__(self, *alone_ms: float) -> None:
        self.alone_ms = iter(alone_ms)

    async def run(self, case: Case, prompts: Sequence[str], seed: int) -> Phase:
        tpot_ms = next(self.alone_ms) if case.draft is None else 20.0
        answer = replace(sample(0.0, 0.1), total_s=0.1 + 63 * tpot_ms / 1e3)
        return phase([ComputeRecord(0.0, 0.02, 1, 1, 0)], [ComputeRecord(0.0, 0.008, 1, 1, 0)], [answer], rtt_ms=10.0)


@pytest.mark.parametrize(
    ("alone_ms", "num_void", "told"),
    [
        pytest.param((40, 47), 0, [], id="steady"),
        pytest.param((40, 50, 80, 40, 40, 41), 2, [], id="steady in the third run"),
        pytest.param(
            (40, 50, 80, 40, 40, 60),
            2,
            ["a token without drafts took 40.0 ms before the case and 60.0 ms after it"],
            id="never steady",
        ),
    ],
)
async def test_a_case_runs_again_if_the_machine_changed_and_is_void_if_it_always_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone_ms: tuple[float, ...], num_void: int, told: list[str]
) -> None:
    monkeypatch.setattr("benchmarks.validation.__main__.WORK", tmp_path / "work")
    path = profile_path(CASE.system, str(CASE.draft), tmp_path)
    path.parent.mkdir()
    path.write_text(PROFILE.model_dump_json())
    machine = Machine(*alone_ms)
    await run_case(cast(LiveSystem, machine), CASE, [], tmp_path, CODE)
    (found,) = results_of([CASE], tmp_path, CODE)
    assert (found.num_void, found.complaints) == (num_void, told)
    assert list(machine.alone_ms) == []


def test_a_finished_case_is_kept_and_not_run_again(tmp_path: Path) -> None:
    assert unfinished([CASE], tmp_path, CODE) == [CASE]
    write_result(path_of(CASE, tmp_path), result())
    assert read_result(path_of(CASE, tmp_path), CaseResult) == result()
    assert unfinished([CASE], tmp_path, CODE) == []
    assert results_of([replace(CASE, draft=INT4)], tmp_path, CODE) == []
    assert results_of([CASE], tmp_path, "of other services") == []
    write_result(path_of(CASE, tmp_path), result(complaints=["pass failed"]))
    assert unfinished([CASE], tmp_path, CODE) == [CASE], "void figures are measured again"
    assert len(results_of([CASE, OTHER], tmp_path, CODE)) == 1


def test_results_of_a_draft_that_was_trained_anew_are_those_of_other_code(tmp_path: Path) -> None:
    folder = tmp_path / "draft-distilled"
    codes = [code_of(tmp_path)]
    folder.mkdir()
    for weights in (b"weights", b"other weights"):
        (folder / "model.onnx").write_bytes(weights)
        codes.append(code_of(tmp_path))
    assert len(set(codes)) == 3


def test_a_result_of_other_code_is_measured_again_even_where_it_has_another_form(tmp_path: Path) -> None:
    path_of(CASE, tmp_path).write_text('{"code": "fedcba9876543210", "what": "earlier code knew"}')
    assert results_of([CASE], tmp_path, CODE) == []
    assert unfinished([CASE], tmp_path, CODE) == [CASE]


def test_an_invalid_result_file_is_named(tmp_path: Path) -> None:
    path_of(CASE, tmp_path).write_text("{}")
    with pytest.raises(ValueError, match=r"test\.json is not a valid ResultCode"):
        unfinished([CASE], tmp_path, CODE)
