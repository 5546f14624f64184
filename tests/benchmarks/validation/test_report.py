"""Errors of predictions, their limits, and the results that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benchmarks.harness.files import read_result, write_result
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.calibration import CalibrationPhase
from benchmarks.validation.cases import CASES, INT4, INT8, ROUNDS, SYSTEMS, Case, RequestLoad, calibration_of
from benchmarks.validation.live import LiveSystem, Phase
from benchmarks.validation.prediction import error_of
from benchmarks.validation.prompts import prompts_of
from benchmarks.validation.report import describe, differences, markdown, summaries, table
from benchmarks.validation.results import CaseRecord, CaseResult, TimingDrift
from benchmarks.validation.rounds import run_case
from benchmarks.validation.store import Store, code_of
from shared.data.profiles import Profile
from tests.benchmarks.validation.sample_case import (
    ALONE,
    CASE,
    CODE,
    LIVE,
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


def test_the_speed_up_is_over_the_mean_of_the_target_only_answers_before_and_after_the_rounds() -> None:
    found = prediction(tpot_ms=1.1)
    assert found.figures("speed_up") == pytest.approx((40.0 / 20.0, 40.0 / 22.0))
    assert found.beside_figures("tpot_ms") == (40.0, 40.0)
    assert found.beside_figures("guesses") is None
    slower = replace(found, beside=replace(ALONE, tpot_ms=42.0))
    assert error_of(slower.beside_figures("tpot_ms")) == pytest.approx(0.05)
    assert error_of(slower.figures("speed_up")) == pytest.approx(1.05 / 1.1 - 1)


def test_the_figures_of_a_case_are_means_over_its_rounds_and_none_where_one_is_unknown() -> None:
    found = result()
    assert (found.live, found.beside) == (LIVE, ALONE)
    unknown = replace(found.rounds[0], live=replace(LIVE, acceptance=None, queue=0.04))
    mixed = replace(found, rounds=[unknown, *found.rounds[1:]])
    assert (mixed.live.acceptance, mixed.live.queue, mixed.live.tpot_ms) == (None, 0.024, 20.2)
    assert (mixed.drift.passes, mixed.drift.trip_ms) == pytest.approx((0.04, 1.5))


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
    found = [known, replace(prediction(OTHER), beside=replace(ALONE, tpot_ms=60.0))]
    by_part = (summaries(found), summaries(found, beside=True))
    worst = [next(each for each in part if each.figure == "tpot_ms").worst for part in by_part]
    assert worst == pytest.approx([0.01, 0.5])
    text = markdown(found, [], ORIGIN)
    assert f"| TPOT, ms | 25.0% | 50.0% | +25.0% | {OTHER.name} |" in text
    assert "| other | 40.0 → 60.0 (+50.0%) | 25.0 → 25.0 (+0.0%) | 90 → 90 (+0.0%) | 38.0 … 42.0 |" in text
    assert "| 5 | 75 | 19.0 … 21.0 |  |" in text
    assert "Errors above the limit" not in text


def test_a_bias_beyond_its_limit_fails_although_each_error_is_small() -> None:
    found = [replace(prediction(), beside=replace(ALONE, tpot_ms=41.6)) for _ in range(3)]
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
    """Answers at once. complaints: of its first phases."""

    system = SYSTEMS[CASE.system]

    def __init__(self, complaints: Sequence[list[str]] = ()) -> None:
        self.complaints = iter(complaints)
        self.asked: list[tuple[str | None, str, int]] = []

    async def run(self, case: Case, prompts: Sequence[str], seed: int) -> Phase:
        self.asked.append((case.draft, prompts[0], seed))
        passes, steps = [ComputeRecord(0.0, 0.02, 1, 1, 0)], [ComputeRecord(0.0, 0.008, 1, 1, 0)]
        found = phase(passes if case.draft is None else 2 * passes, steps, [sample(0.0, 0.1)], rtt_ms=10.0)
        return replace(found, complaints=next(self.complaints, []))


async def record_of(machine: Machine, number: int = 0, case: Case = CASE) -> CaseRecord:
    return await run_case(cast(LiveSystem, machine), case, number)


@pytest.mark.parametrize(
    ("complaints", "num_void", "told"),
    [
        pytest.param([], 0, [], id="quiet"),
        pytest.param([[], ["busy"], [], ["busy"]], 2, [], id="quiet the third time"),
        pytest.param([["busy"], [], []] * 3, 2, ["busy"], id="never quiet"),
    ],
)
async def test_a_round_of_a_case_runs_again_while_it_is_void_and_at_most_three_times(
    complaints: list[list[str]], num_void: int, told: list[str]
) -> None:
    machine = Machine(complaints)
    found = await record_of(machine)
    assert (found.num_void, found.complaints) == (num_void, told)
    assert [draft for draft, _, _ in machine.asked] == [None, INT8, None] * (num_void + 1)


async def test_each_round_of_a_case_asks_the_next_prompts_at_other_times() -> None:
    machine = Machine()
    for number in range(ROUNDS):
        await record_of(machine, number, replace(CASE, load=RequestLoad(8, 1)))
        await record_of(machine, number, replace(CASE, load=RequestLoad(12, 6)))
    prompts = prompts_of(SYSTEMS[CASE.system], is_development=False)
    assert [prompt for _, prompt, _ in machine.asked[1::6]] == prompts[::8]
    assert [prompt for _, prompt, _ in machine.asked[4::6]] == [prompts[first] for first in (0, 12, 24, 36, 8)]
    assert len({seed for _, _, seed in machine.asked}) == ROUNDS


async def test_a_result_is_written_when_the_records_of_all_rounds_are_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    system = SYSTEMS[CASE.system]
    for number in range(ROUNDS):
        assert not store.has_record(CASE, number)
        store.finish(system, [CASE])
        assert store.results([CASE]) == []
        store.keep_record(await record_of(Machine()), number)
    assert store.has_record(CASE, 0)
    assert not store.has_record(replace(CASE, draft=INT4), 0)
    store.finish(system, [CASE])
    (found,) = store.results([CASE])
    assert len(found.rounds) == ROUNDS
    assert found.drift == TimingDrift(passes=0.0, steps=0.0, trip_ms=0.0)
    assert not store.has_record(CASE, 0), "another folder is measured anew"


async def test_a_void_round_is_run_again_and_its_case_is_void_until_then(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for number in range(ROUNDS):
        store.keep_record(await record_of(Machine([["busy"]] * 9 if number == 1 else [])), number)
    store.finish(SYSTEMS[CASE.system], [CASE])
    assert [store.has_record(CASE, number) for number in range(ROUNDS)] == [True, False, True, True, True]
    assert store.results([CASE])[0].complaints == ["busy"] * 3
    assert store.unfinished([CASE]) == [CASE]
    store.keep_record(await record_of(Machine()), 1)
    store.finish(SYSTEMS[CASE.system], [CASE])
    assert store.unfinished([CASE]) == []


def test_a_profile_is_fitted_to_the_calibrations_of_all_rounds_without_their_void_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[list[float]] = []

    def fit(name: str, phases: Sequence[CalibrationPhase], origin: str) -> dict[str, Profile]:
        fitted.append([each.phase.begin_s for each in phases])
        return {str(CASE.draft): PROFILE}

    monkeypatch.setattr("benchmarks.validation.store.profiles_of", fit)
    store, system = store_in(tmp_path), SYSTEMS[CASE.system]
    loads = calibration_of(system)
    for number in range(ROUNDS):
        store.finish(system, [])
        measured = [CalibrationPhase(load, replace(phase([]), begin_s=float(number))) for load in loads]
        measured[0] = CalibrationPhase(loads[0], replace(phase([]), complaints=["busy"]))
        store.keep_calibration(system, number, measured[1:])
        assert not store.has_calibration(system, number), "a load is missing"
        store.keep_calibration(system, number, measured)
        assert store.has_calibration(system, number)
    store.finish(system, [])
    store.finish(system, [])
    assert fitted == [[float(number) for number in range(ROUNDS) for _ in loads[1:]]], "once"
    store.refit(system)
    assert fitted[0] == fitted[1]


def store_in(folder: Path) -> Store:
    """With a profile."""
    store = Store(folder, folder / "work", CODE)
    path = store.profile_path(CASE.system, str(CASE.draft))
    path.parent.mkdir(exist_ok=True)
    path.write_text(PROFILE.model_dump_json())
    return store


def test_a_finished_case_is_kept_and_not_run_again(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    path = store.result_path(CASE)
    assert store.unfinished([CASE]) == [CASE]
    write_result(path, result())
    assert read_result(path, CaseResult) == result()
    assert store.unfinished([CASE]) == []
    assert store.results([replace(CASE, draft=INT4)]) == []
    assert replace(store, code="of other services").results([CASE]) == []
    write_result(path, result(complaints=["pass failed"]))
    assert store.unfinished([CASE]) == [CASE], "void figures are measured again"
    assert len(store.results([CASE, OTHER])) == 1


def test_a_system_without_a_profile_or_a_result_of_this_code_is_calibrated(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    case = CASES[0]
    write_result(store.result_path(case), result(case))
    assert store.needs_calibration(SYSTEMS[case.system]), "the distilled draft has no profile"
    for draft in SYSTEMS[case.system].drafts:
        store.profile_path(case.system, draft).write_text(PROFILE.model_dump_json())
    assert not store.needs_calibration(SYSTEMS[case.system])
    assert replace(store, code="of other services").needs_calibration(SYSTEMS[case.system])


def test_results_of_a_draft_that_was_trained_anew_are_those_of_other_code(tmp_path: Path) -> None:
    folder = tmp_path / "draft-distilled"
    codes = [code_of(tmp_path)]
    folder.mkdir()
    for weights in (b"weights", b"other weights"):
        (folder / "model.onnx").write_bytes(weights)
        codes.append(code_of(tmp_path))
    assert len(set(codes)) == 3


def test_a_result_of_other_code_is_measured_again_even_where_it_has_another_form(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.result_path(CASE).write_text('{"code": "fedcba9876543210", "what": "earlier code knew"}')
    assert store.results([CASE]) == []
    assert store.unfinished([CASE]) == [CASE]


def test_an_invalid_result_file_is_named(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.result_path(CASE).write_text("{}")
    with pytest.raises(ValueError, match=r"test\.json is not a valid ResultCode"):
        store.unfinished([CASE])
