"""Figures of cells, and where DSD is behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers.cells import Cell
from benchmarks.peers.findings import SPEED, TPOT, TTFT, CellFigures
from benchmarks.peers.requirements import checks
from benchmarks.peers.systems import (
    LLAMA,
    ON_VLLM_DISTILLED,
    ON_VLLM_INT8,
    ON_VLLM_PLAIN,
    TORCH_INT8,
    VLLM,
    VLLM_DRAFT,
    VLLM_ONE,
)
from tests.benchmarks.peers.sample_cells import named, result

CELL = Cell(8, 50, 6)
SPEEDS = {LLAMA: 120.0, VLLM: 200.0, VLLM_DRAFT: 400.0, VLLM_ONE: 150.0, ON_VLLM_PLAIN: 160.0, ON_VLLM_INT8: 180.0}
USED = named(*SPEEDS)


def figures(cell: Cell = CELL, **ttft_ms: float) -> CellFigures:
    return CellFigures.of(result(cell, USED, SPEEDS, ttft_ms))


def test_the_interval_of_a_speed_holds_it_and_a_ratio_is_paired() -> None:
    found = figures()
    speed, ratio = found.value(SPEED, VLLM), found.ratio(SPEED, ON_VLLM_INT8, VLLM)
    assert speed.low < 200 < speed.high
    assert speed.low > 180
    assert ratio.low < 0.9 < ratio.high
    assert found.ratio(SPEED, VLLM, VLLM).low == pytest.approx(1)


def test_the_best_peer_is_by_the_figure_and_runs_no_draft_of_ours() -> None:
    found = figures(**{LLAMA: 40.0, VLLM_DRAFT: 20.0})
    assert found.best_peer(SPEED) == VLLM
    assert found.best_peer(TTFT) == LLAMA


def test_behind_are_the_figures_in_which_the_fastest_of_ours_loses() -> None:
    found = figures(**{ON_VLLM_INT8: 90.0})
    assert [(each.measure, each.ours, each.theirs) for each in found.behind()] == [
        (SPEED, ON_VLLM_INT8, VLLM),
        (TPOT, ON_VLLM_INT8, VLLM),
    ]
    assert [each.measure for each in figures(**{ON_VLLM_INT8: 400.0}).behind()] == [SPEED, TTFT, TPOT]


def test_texts_are_compared_with_those_of_the_plain_system() -> None:
    found = figures()
    changed = replace(found.result.rounds[0][ON_VLLM_INT8], texts=["other"] + ["same 1"] * 7)
    rounds = [found.result.rounds[0] | {ON_VLLM_INT8: changed}]
    (system,) = named(ON_VLLM_INT8)
    assert CellFigures.of(replace(found.result, rounds=rounds)).same_texts(system) == pytest.approx(1 / 8)
    assert found.same_texts(system) == 1
    (plain,) = named(ON_VLLM_PLAIN)
    assert found.same_texts(plain) is None


def test_sampled_texts_are_compared_only_where_a_seed_decides_them() -> None:
    found = figures(replace(CELL, temperature=0.8))
    ours, theirs = named(ON_VLLM_INT8)[0], named(VLLM_DRAFT)[0]
    assert found.same_texts(ours) == 1
    assert found.same_texts(theirs) is None


def test_a_requirement_is_open_where_only_the_interval_reaches_it() -> None:
    verdicts = {each.what: each.verdict for each in checks(figures())}
    assert verdicts[f"tokens/s: {ON_VLLM_INT8} / {VLLM}"] == "**no**"  # 0.9 of the best peer, 0.97 wanted
    assert verdicts[f"tokens/s: {ON_VLLM_INT8} / {LLAMA}"] == "yes"
    assert verdicts[f"TTFT: {ON_VLLM_INT8} / {VLLM_ONE}"] == "yes"
    near = CellFigures.of(result(CELL, USED, SPEEDS | {ON_VLLM_INT8: 189.0}, {}))
    assert {each.what: each.verdict for each in checks(near)}[f"tokens/s: {ON_VLLM_INT8} / {VLLM}"] == "**open**"


@pytest.mark.parametrize(("faster", "slower"), [(VLLM, VLLM_ONE), (VLLM_ONE, VLLM)])
def test_dsd_is_held_to_vllms_own_server_in_the_better_of_its_two_uses_of_the_cores(faster: str, slower: str) -> None:
    cell = replace(CELL, num_clients=16)
    found = CellFigures.of(result(cell, USED, SPEEDS | {faster: 200.0, slower: 100.0}, {faster: 90.0, slower: 110.0}))
    told = {each.what for each in checks(found)}
    assert {f"TTFT: {ON_VLLM_PLAIN} / {faster}", f"tokens/s: {ON_VLLM_PLAIN} / {faster}"} <= told
    assert not any(what.endswith(f"/ {slower}") for what in told)


def test_speculation_must_not_delay_the_first_token_of_a_long_prompt() -> None:
    used = named(ON_VLLM_PLAIN, ON_VLLM_INT8, ON_VLLM_DISTILLED, TORCH_INT8, VLLM_ONE)
    speeds = dict.fromkeys((system.name for system in used), 100.0)
    found = CellFigures.of(result(Cell(1, 2000, 4), used, speeds, {ON_VLLM_DISTILLED: 130.0}))
    verdicts = {each.what: each.verdict for each in checks(found) if each.limit == 1.10}
    assert verdicts == {
        f"TTFT: {ON_VLLM_INT8} / {ON_VLLM_PLAIN}": "yes",
        f"TTFT: {ON_VLLM_DISTILLED} / {ON_VLLM_PLAIN}": "**no**",
    }
