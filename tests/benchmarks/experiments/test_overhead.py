"""DSD's own time per token, measured on a real drafter and on real services."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experiments import draft_steps, overhead
from benchmarks.experiments.draft_steps import measure_second_turn, measure_steps, measure_throughput
from benchmarks.experiments.service_overhead import measure_services
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio

ORIGIN = Origin("a command", "a machine", "a date", "3")


async def test_a_drafter_at_work_is_compared_with_bare_steps_of_the_same_graph(default_models: Path) -> None:
    ours, bares = await measure_steps(default_models / "draft-int8", repeats=2, seed=1)
    assert len(ours) == len(bares) == 2
    assert min(bares) > 0.5, "a step of the default draft takes milliseconds"
    assert min(ours) > 0.5 * min(bares), "a drafter's step holds one of the graph's"


@pytest.mark.timeout(180)
async def test_the_guesses_of_a_drafter_for_several_sessions_are_counted(default_models: Path) -> None:
    found = await measure_throughput(default_models / "draft-int8", (1, 3), repeats=1, seed=1)
    assert {num: len(figures) for num, figures in found.items()} == {1: 1, 3: 1}
    assert 0 < min(found[1]) < 2000, "a step of the default draft takes milliseconds"
    assert min(found[3]) > 0


@pytest.mark.timeout(180)
async def test_a_second_turn_is_compared_with_the_model_alone_on_its_new_tokens(
    default_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_steps, "HISTORY", 300)
    turns, alone = await measure_second_turn(default_models / "draft-int8", repeats=1, seed=1)
    assert len(turns) == len(alone) == 1
    assert min(alone) > 0.5, "a step of the default draft takes milliseconds"


@pytest.mark.timeout(180)
async def test_rounds_and_the_gateways_time_are_measured_on_running_services(default_models: Path) -> None:
    rounds, gateway_ms, complaints = await measure_services(default_models, repeats=3, seed=1)
    assert complaints == []
    assert len(rounds) == 3
    assert min(rounds) > 0, "messages and loops take some time"
    assert set(gateway_ms) == {"target-only", "sliding"}
    assert min(gateway_ms.values()) > 0


def test_the_table_of_costs_shows_the_limits() -> None:
    costs = overhead.OverheadCosts(
        7.0, 6.5, Ratio(1.077, 1.05, 1.09), {1: 140.0, 2: 210.0, 8: 450.0},
        {2: Ratio(1.5, 1.4, 1.6), 8: Ratio(3.214, 3.1, 3.3)}, 42.0, 1.2, (1.0, 1.5), {"sliding": 0.25}, ["void"],
        ORIGIN,
    )  # fmt: skip
    shown = overhead.table(costs)
    assert [list(column.cells) for column in shown.columns][2] == [
        "≤ 1.15",
        "",
        "≥ 3.0",
        "≤ 100.0",
        "≤ 2.0",
        "≤ 0.5",
        "",
    ]
    assert "3.214 (3.100 … 3.300): 450.0" in list(shown.columns[1].cells)
    assert "1.077 (1.050 … 1.090)" in next(iter(list(shown.columns[1].cells)))
