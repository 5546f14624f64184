"""Errors of a validation, those above their limits, and the results that are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.files import read_result, write_result
from benchmarks.validation.__main__ import matches, path_of, results_of, unfinished, write_report
from benchmarks.validation.case_run import CaseResult
from benchmarks.validation.cases import CASES, NUM_TOKENS
from benchmarks.validation.report import differences, error_of, excesses, markdown, summaries, table
from tests.benchmarks.validation.sample_case import CASE, CODE, ORIGIN, result


def test_an_error_is_relative_to_the_live_figure() -> None:
    found = result(tpot_ms=1.1, ttft_ms=0.8)
    assert error_of(found, "tpot_ms") == pytest.approx(0.1)
    assert error_of(found, "ttft_ms") == pytest.approx(-0.2)
    assert error_of(found, "queue") == 0


def test_medians_and_the_worst_are_of_the_cases_that_count() -> None:
    cases = [replace(CASE, name=name) for name in ("a", "b", "c", "void")]
    found = [result(case, tpot_ms=factor) for case, factor in zip(cases, (1.02, 0.9, 1.04, 2.0), strict=True)]
    found[3] = replace(found[3], complaints=["pass failed"])
    tpot = next(each for each in summaries(found) if each.figure == "tpot_ms")
    assert (tpot.median, tpot.worst, tpot.worst_case) == (pytest.approx(0.04), pytest.approx(0.1), "b")
    assert tpot.holds
    assert excesses(found) == []
    assert summaries(found[3:]) == []


def test_an_error_above_its_limit_is_listed_with_the_differences_of_its_run() -> None:
    found = [result(tpot_ms=1.2)]
    assert not next(each for each in summaries(found) if each.figure == "tpot_ms").holds
    assert [(each.figure, round(each.error, 3)) for each in excesses(found)] == [("tpot_ms", 0.2)]
    text = markdown(found, ["lost"], ORIGIN)
    assert "Without a result: lost." in text
    assert (
        "* `test`, TPOT, ms: 20.0 → 24.0 (+20.0%); passes took +4.0%, those over 32 tokens +20.0%; draft steps -1.0%"
        in text
    )
    assert "| TPOT, ms | 20.0% | 5% | 20.0% | 15% | test | **no** |" in text
    assert "round trip 11.0 ms, calibrated 10.0" in differences(found[0])
    assert ORIGIN.command in text


def test_the_throughput_of_an_open_loop_does_not_count_and_large_errors_without_a_limit_are_listed() -> None:
    given = replace(CASE, name="open", num_clients=0, rate_per_s=1.0)
    found = [result(tokens_per_s=1.04), result(given, tokens_per_s=1.0), result(given, queue=1.3)]
    throughput = next(each for each in summaries(found) if each.figure == "tokens_per_s")
    assert (throughput.median, throughput.worst) == (pytest.approx(0.04), pytest.approx(0.04))
    assert [each.figure for each in excesses(found)] == ["queue"]


def test_void_cases_are_marked() -> None:
    found = [result(complaints=["verifier-0: pass failed"])]
    assert "| test **void**: verifier-0: pass failed |" in markdown(found, [], ORIGIN)
    assert next(iter(table(found).columns[0].cells)) == "test (void)"


def test_a_finished_case_is_kept_and_not_run_again(tmp_path: Path) -> None:
    assert unfinished([CASE], tmp_path, CODE) == [CASE]
    write_result(path_of(CASE, tmp_path), result())
    assert read_result(path_of(CASE, tmp_path), CaseResult) == result()
    assert unfinished([CASE], tmp_path, CODE) == []
    assert not matches(result(), replace(CASE, rtt_ms=5), CODE)
    assert not matches(result(), CASE, "of another simulator")
    assert not matches(result(), CASE, CODE, NUM_TOKENS + 1)
    assert results_of([replace(CASE, rtt_ms=5)], tmp_path, CODE) == []
    write_result(path_of(CASE, tmp_path), result(complaints=["pass failed"]))
    assert unfinished([CASE], tmp_path, CODE) == [CASE], "void figures are measured again"
    assert len(results_of([CASE, replace(CASE, name="missing")], tmp_path, CODE)) == 1
    assert write_report(CASES, [result()], tmp_path).read_text().startswith("# DSD-Sim against the services")


def test_a_result_of_other_code_is_measured_again_even_where_it_has_another_form(tmp_path: Path) -> None:
    path_of(CASE, tmp_path).write_text('{"code": "fedcba9876543210", "what": "earlier code knew"}')
    assert results_of([CASE], tmp_path, CODE) == []
    assert unfinished([CASE], tmp_path, CODE) == [CASE]


def test_an_invalid_result_file_is_named(tmp_path: Path) -> None:
    path_of(CASE, tmp_path).write_text("{}")
    with pytest.raises(ValueError, match=r"test\.json is not a valid ResultCode"):
        unfinished([CASE], tmp_path, CODE)
