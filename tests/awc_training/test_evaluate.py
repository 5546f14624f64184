"""Comparisons: ratios with intervals, and the price of unused guesses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace as changed

from awc_training.cases import case_row
from awc_training.evaluate import Results, best_of, frontier_table, met, requirements, standing, standings
from awc_training.intervals import Interval, geometric_mean, mean, median, ratio, ratio_of_means
from dsd_sim.studies.report import GuessFates, TimeStats, priced
from tests.awc_training.results import report


def results(label: str, *tpot_ms: float, drafted: int = 10) -> Results:
    found = [changed(report(100.0, drafted=drafted), tpot_ms=TimeStats(each, each, each, each)) for each in tpot_ms]
    return Results(label, found)


def test_a_ratio_is_the_geometric_mean_and_lies_within_its_interval() -> None:
    found = ratio([2.0, 4.0, 8.0], [1.0, 4.0, 16.0])
    assert found.value == pytest.approx(1.0)
    assert found.low < 0.8 < 1.25 < found.high
    assert str(ratio([3.0, 3.0], [2.0, 2.0])) == "1.500 (1.500–1.500)"
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_a_guess_that_was_not_used_costs_its_price() -> None:
    assert priced(100.0, GuessFates(30, 10, 5, 5, 10), 20, 0.05) == pytest.approx(100 * (1 - 0.05))
    assert priced(100.0, GuessFates(0, 0, 0, 0, 0), 20, 0.05) == 100.0


def test_the_best_rival_is_the_fastest_on_average() -> None:
    slow, even, mixed = results("slow", 30, 30), results("even", 20, 20), results("mixed", 10, 39)
    assert best_of([slow, even, mixed]).label == "mixed"
    best, found = standing(results("ours", 20, 20), [slow, even])
    assert best.label == "even"
    assert found.value == pytest.approx(1.0)


def test_a_case_shows_what_the_fastest_rival_pays_for_its_speed() -> None:
    ours, lab, alone = (
        Results(each.label, [changed(one, tokens_per_s=rate, ttft_ms=TimeStats(ttft, 0, 0, 0)) for one in each.reports])
        for each, rate, ttft in (
            (results("ours", 20, 20), 200.0, 40.0),
            (results("lab", 10, 10), 100.0, 80.0),
            (results("static 0", 40, 40), 100.0, 20.0),
        )
    )
    half, twice = (f"{each:.3f} ({each:.3f}–{each:.3f})" for each in (0.5, 2.0))
    row = case_row("crowd", ours, [alone, lab]).split(" | ")
    assert row[:7] == ["crowd", "lab", half, "**no**", twice, half, twice]


def test_means_and_medians_lie_within_their_intervals() -> None:
    values = [1.0, 2.0, 9.0]
    for found, middle in ((mean(values), 4.0), (median(values), 2.0), (ratio_of_means(values, [2.0, 2.0, 4.0]), 1.5)):
        assert found.value == pytest.approx(middle)
        assert found.low < middle < found.high
    assert mean([2.0, 2.0]).shown(1) == "2.0 (2.0–2.0)"


def test_a_table_has_a_row_for_everybody() -> None:
    lines = list(standings(results("ours", 10, 10, drafted=0), [results("one", 20, 20), results("two", 10, 20)]))
    ours, one, two = (line for line in lines if line.startswith(("| ours", "| one", "| two")))
    assert lines[0].startswith("Ratios are ours / this policy")
    assert ours.startswith("| ours | 0.00 (0.00–0.00) | | |")
    assert one.startswith(
        "| one | 1.00 (1.00–1.00) | 0.00 (0.00–0.00) | 2.000 (2.000–2.000) | 1.000 (1.000–1.000) | 1.010 ("
    )
    assert "| 1.414 (" in two


def test_a_policy_that_another_beats_with_fewer_guesses_is_not_on_the_frontier() -> None:
    alone, short = results("alone", 20, 20, drafted=0), results("short", 10, 10, drafted=10)
    slow, long = results("slow", 16, 16, drafted=20), results("long", 8, 8, drafted=30)
    lines = [
        line for line in frontier_table([long, slow, short, alone], alone) if " (" in line and line.startswith("|")
    ]
    assert lines == [
        "| alone | 0.00 (0.00–0.00) | 1.000 (1.000–1.000) | yes |",
        "| short | 1.00 (1.00–1.00) | 2.000 (2.000–2.000) | yes |",
        "| slow | 2.00 (2.00–2.00) | 1.250 (1.250–1.250) |  |",
        "| long | 3.00 (3.00–3.00) | 2.500 (2.500–2.500) | yes |",
    ]


def test_a_limit_is_met_by_the_unfavourable_end_of_the_interval() -> None:
    assert met(Interval(1.0, 0.98, 1.02), 0.97) == "yes"
    assert met(Interval(1.0, 0.96, 1.04), 0.97) == "by its value only"
    assert met(Interval(0.96, 0.9, 1.04), 0.97) == "**no**"
    assert met(Interval(0.5, 0.4, 0.6), 0.6, is_most=True) == "yes"
    assert met(Interval(0.5, 0.4, 0.61), 0.6, is_most=True) == "by its value only"
    assert met(Interval(0.61, 0.5, 0.7), 0.6, is_most=True) == "**no**"


def test_requirements_begin_with_the_rival_that_leads_most() -> None:
    ours, thrifty = results("ours", 10, 10, drafted=50), results("thrifty", 20, 20, drafted=0)
    widest = results("static 32", 9, 9, drafted=100)
    rows = [line.split(" | ") for line in requirements(ours, [widest, thrifty]) if " to " in line]
    assert [(row[0], row[-1]) for row in rows] == [
        ("| goodput to thrifty", "**no** |"),
        ("| goodput to static 32", "yes |"),
        ("| speed to static 32", "**no** |"),
        ("| guesses per token to static 32", "yes |"),
    ]
