"""The plan names every cell that the comparison promises, and fits its time."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.peers.cells import MIN_ROUNDS, START_S, Cell, estimated_s, full_plan, num_starts, plan_table
from benchmarks.peers.measuring import Budget, is_enough
from benchmarks.peers.prompts import prompts_of_round
from benchmarks.peers.systems import LLAMA, TRANSFORMERS, VLLM, VLLM_DRAFT, Choice, systems

PLAN = full_plan()
SYSTEMS = systems(Choice())
SHORTER = [each for each in PLAN if each.num_clients == 1]


def test_the_plan_has_the_cells_that_the_report_promises() -> None:
    found = {(each.num_clients, each.prompt_tokens, each.temperature, each.rtt_ms) for each in PLAN}
    near = set(itertools.product((1, 8), (50, 500, 2000), (0.0,), (0,)))
    sampled = set(itertools.product((1, 8), (50,), (0.8,), (0,)))
    far = set(itertools.product((1, 8), (50,), (0.0,), (30, 100)))
    assert found == near | sampled | far | {(4, 50, 0.0, 0), (16, 50, 0.0, 0)}


def test_names_of_cells_are_different_and_cells_of_one_distance_are_neighbours() -> None:
    assert len({each.name for each in PLAN}) == len(PLAN)
    distances = [rtt_ms for rtt_ms, _ in itertools.groupby(PLAN, key=lambda each: each.rtt_ms)]
    assert distances == [0, 30, 100, 0], "the longest cell is the last"
    assert PLAN[-1] == max(PLAN, key=lambda each: each.round_s(len(SYSTEMS)))
    assert num_starts(PLAN, SYSTEMS) == 7 + 2 * 4


def test_the_plan_takes_at_most_two_and_a_half_hours() -> None:
    in_all = sum(estimated_s(each, SYSTEMS) for each in PLAN) + START_S * num_starts(PLAN, SYSTEMS)
    assert in_all <= 2.5 * 3600
    assert f"{in_all / 60:.0f} |" in plan_table(PLAN, SYSTEMS).splitlines()[-1]


def test_cells_with_a_distance_leave_out_peers_that_are_no_base() -> None:
    far = next(each for each in PLAN if each.rtt_ms)
    names = {system.name for system in SYSTEMS if far.takes_part(system)}
    assert {LLAMA, VLLM, "DSD on vLLM, int8"} <= names
    assert not {TRANSFORMERS, VLLM_DRAFT} & names


def test_without_a_distilled_draft_no_system_needs_one() -> None:
    names = [system.name for system in systems(Choice(has_distilled=False))]
    assert len(names) == len(SYSTEMS) - 3
    assert not any("distilled" in name for name in names)


def test_a_small_memory_leaves_out_the_system_that_is_not_counted() -> None:
    assert set(SYSTEMS) - set(systems(Choice(has_room=False))) == {each for each in SYSTEMS if not each.is_counted}


def test_the_budget_is_divided_by_estimates_and_what_is_left_goes_to_the_others() -> None:
    budget = Budget(1000, SHORTER[:3], SYSTEMS, now=0)
    weights = [estimated_s(each, SYSTEMS) for each in SHORTER[:3]]
    assert budget.share_s(SHORTER[0], 0) == pytest.approx(1000 * weights[0] / sum(weights))
    assert budget.share_s(SHORTER[1], 10) == pytest.approx(990 * weights[1] / (weights[1] + weights[2]))
    assert budget.share_s(SHORTER[2], 500) == pytest.approx(500)
    assert not budget.is_over(999)
    assert budget.is_over(1000)


def test_the_budget_sets_later_starts_aside() -> None:
    near, far = Cell(1, 50, 4), Cell(1, 50, 4, rtt_ms=30)
    alone = Budget(1000, [near], SYSTEMS, now=0).share_s(near, 0)
    assert alone == pytest.approx(1000)
    both = Budget(1000, [near, far], SYSTEMS, now=0)
    weights = [estimated_s(each, SYSTEMS) for each in (near, far)]
    assert both.share_s(near, 0) == pytest.approx((1000 - 2 * START_S) * weights[0] / sum(weights))


def test_a_cell_ends_with_all_its_rounds_or_when_no_other_fits_but_not_before_three() -> None:
    cell = Cell(1, 50, 5)
    assert is_enough(5, 5, 1, 100, cell, 1)
    assert not is_enough(MIN_ROUNDS - 1, 2, 500, 100, cell, 1)
    assert is_enough(3, 3, 90, 100, cell, 1)
    assert not is_enough(3, 3, 60, 100, cell, 1)
    assert is_enough(3, 0, 0, 0, cell, 1)  # it continues a cell, and has no time


def test_rounds_of_a_cell_ask_all_prompts_before_they_repeat_one() -> None:
    prompts = [f"prompt {number}" for number in range(24)]
    cell = Cell(8, 500, 4)
    rounds = [prompts_of_round(prompts, cell, number, seed=1) for number in range(4)]
    assert sorted(prompt for each in rounds[:3] for prompt in each) == sorted(prompts)
    assert rounds[3] == rounds[0]
    assert rounds[0] != prompts_of_round(prompts, cell, 0, seed=2)
