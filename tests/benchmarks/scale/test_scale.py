"""Cells, fitted costs, growth, capacity and report of the benchmark of scale."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.files import write_result
from benchmarks.load.processor_time import ProcessorTime
from benchmarks.scale.__main__ import chosen, fitted, write_report
from benchmarks.scale.capacity import STEP, Assumptions, costs_of, most_users, needed
from benchmarks.scale.cells import CENTRE, Cell, Timing, full_plan, plan_table
from benchmarks.scale.fit import AXES, NAMES, Drivers, cpu_of, drivers_of, fit, growths_of, observations_of
from benchmarks.scale.prediction import predict
from benchmarks.scale.readings import Reading, Varz, slice_of
from benchmarks.scale.report import LEAST_CELLS, NOT_RUN, markdown
from benchmarks.scale.results import CLIENT, GATEWAY, SERVICES, VERIFIER, CellResult, path_of, read_cell
from benchmarks.scale.system import numbered, shared_out
from benchmarks.standins.compute_log import ComputeRecord
from tests.benchmarks.scale.sample_results import COST, linear, sample_result

GATEWAY_CPU = cpu_of(GATEWAY)


def all_results(noise: float = 0.0) -> list[CellResult]:
    return [sample_result(cell, noise=noise) for cell in full_plan()]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_each_number_is_varied_alone_and_names_differ() -> None:
    plan = full_plan()
    assert len({cell.name for cell in plan}) == len(plan)
    for axis in AXES:
        on_axis = {getattr(cell, axis) for cell in plan if replace(CENTRE, **{axis: getattr(cell, axis)}) == cell}
        assert len(on_axis) >= 3, axis


def test_the_cells_tell_all_costs_apart() -> None:
    rows = [drivers_of(each.cell, each.loaded, is_loaded=True).values() for each in all_results()]
    features = np.array(rows)
    assert np.linalg.matrix_rank(features / features.max(axis=0), tol=0.05) == len(NAMES) + 1


def test_the_plan_shows_minutes_of_each_cell_and_in_all() -> None:
    timing = Timing()
    table = plan_table(full_plan(), timing)
    assert all(cell.name in table for cell in full_plan())
    assert f"{sum(map(timing.cell_s, full_plan())) / 60:.0f} |" in table.splitlines()[-1]


def test_an_unknown_cell_is_refused_with_the_known_ones() -> None:
    assert chosen(full_plan(), [CENTRE.name]) == [CENTRE]
    with pytest.raises(Exception, match=f"none is no cell; cells: {CENTRE.name}"):
        chosen(full_plan(), ["none"])


def test_prompts_of_requests_differ() -> None:
    assert len(set(numbered(["a", "b"], 100))) == 100


def test_drafters_are_shared_out_among_as_few_processes_as_hold_them() -> None:
    assert shared_out(100) == [range(100)]
    assert shared_out(1000) == [range(500), range(500, 1000)]
    assert [len(each) for each in shared_out(1001)] == [333, 334, 334]


# --- readings ---------------------------------------------------------------------------------------------------------


def test_a_slice_has_the_services_time_without_that_of_their_models() -> None:
    cpu_s = dict.fromkeys(("gateway", "verifier-0", "drafters-0", "controller", "nats-server", CLIENT), 1.0)
    before = Reading(10.0, cpu_s, 100, 3, Varz(1, 2, 3, 4), ProcessorTime(10.0, 5.0, 5.0))
    later = {name: seconds + 2.0 for name, seconds in cpu_s.items()}
    after = Reading(20.0, later, 160, 5, Varz(11, 22, 33, 44), ProcessorTime(20.0, 15.5, 15.0))
    passes = [ComputeRecord(end - 1, end, 1, 1, 0, cpu_s=0.5) for end in (9.0, 12.0, 19.0, 21.0)]
    found = slice_of(before, after, {"verifier-0": passes, "drafters-0": passes[:2]})
    assert (found.cpu_s["verifier"], found.cpu_s["drafter"], found.cpu_s["gateway"]) == (1.0, 1.5, 2.0)
    assert (found.num_tokens, found.num_requests, found.model_cpu_s) == (60, 2, 1.5)
    assert (found.bus.published, found.bus.delivered_bytes) == (10, 40)
    assert found.foreign_share == pytest.approx(0.05)
    assert found.busiest_share == pytest.approx(0.2)
    assert set(found.cpu_s) == {*SERVICES, CLIENT}


def test_a_cell_that_fills_the_cores_or_one_event_loop_is_void() -> None:
    calm = sample_result(CENTRE).loaded
    assert calm.complaint is None
    assert "of the cores" in str(replace(calm, busy_share=0.9).complaint)
    assert "of a core" in str(replace(calm, busiest_share=0.9).complaint)


# --- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_finds_known_costs(seed: int) -> None:
    results = [sample_result(cell, noise=0.01, seed=seed) for cell in full_plan()]
    curve = fit(observations_of(results, GATEWAY_CPU))
    # What the whole system costs at the ends of the axes is right to a few percent, as is the cost of a token.
    assert curve.cost("tokens_per_s") == pytest.approx(COST[0], rel=0.1)
    for drivers in (Drivers(600, 12.5, 1024, 1000, 8), Drivers(600, 12.5, 64, 10, 1), Drivers(0, 0, 0, 1000, 8)):
        assert curve.at(drivers) == pytest.approx(linear(drivers), rel=0.05)
    assert curve.error < 0.02


def test_costs_are_never_negative() -> None:
    generator = random.Random(1)
    results = [sample_result(cell, lambda drivers: generator.random()) for cell in full_plan()]
    assert min(fit(observations_of(results, GATEWAY_CPU)).costs) >= 0


def test_only_what_grows_faster_than_linearly_is_named() -> None:
    def quadratic(drivers: Drivers) -> float:
        return linear(drivers) + 1e-7 * drivers.sessions**2

    for cost, steep in ((linear, set()), (quadratic, {"sessions"})):
        results = [sample_result(cell, cost, noise=0.01) for cell in full_plan()]
        found = growths_of(results, GATEWAY_CPU, COST[0])
        assert {each.axis for each in found} == set(AXES)
        assert {each.axis for each in found if each.is_faster} == steep


def test_what_flattens_is_not_named() -> None:
    results = [sample_result(cell, lambda drivers: linear(drivers) + drivers.sessions**0.5) for cell in full_plan()]
    assert not any(each.is_faster for each in growths_of(results, GATEWAY_CPU, COST[0]))


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_gateways_share_tokens_and_each_hears_all_heartbeats() -> None:
    assumed = Assumptions()
    answer = needed(costs_of(all_results()), assumed, users_per_verifier=100)
    assert (answer.drafters, answer.verifiers_by_model) == (1250, 100)
    drivers = assumed.drivers(answer.verifiers)
    shared = sum(cost * value for cost, value in zip(COST[:3], drivers.values()[:3], strict=True))
    own = COST[3] * drivers.drafters + COST[4] * drivers.verifiers + COST[5]
    assert own < assumed.target_share
    assert answer.gateways == -(-shared // (assumed.target_share - own))
    assert answer.gateway_share <= assumed.target_share
    assert answer.verifiers == max(answer.verifiers_by_model, answer.verifiers_by_cpu)


def test_two_of_several_controllers_decide_for_each_drafter_and_none_is_too_busy() -> None:
    costs = costs_of(all_results())
    for users, is_one in ((5, True), (10_000, False)):
        assumed = Assumptions(users=users)
        answer = needed(costs, assumed, 200)
        drivers = assumed.drivers(answer.verifiers)  # the made-up controller costs as much as a gateway
        shared = sum(cost * value for cost, value in zip(COST[:3], drivers.values()[:3], strict=True))
        own = COST[3] * drivers.drafters + COST[4] * drivers.verifiers + COST[5]
        decided = shared if is_one else 2 * shared
        assert (answer.controllers == 1) == is_one
        assert answer.controller_share == pytest.approx(decided / answer.controllers + own)
        assert answer.controller_share <= assumed.target_share
        assert is_one or decided / (answer.controllers - 1) + own > assumed.target_share


def test_more_users_need_more_of_everything() -> None:
    costs = costs_of(all_results())
    few, many = (needed(costs, Assumptions(users=users), 200) for users in (500, 5000))
    for name in ("gateways", "verifiers", "drafters", "nats_cores", "messages_per_s"):
        assert getattr(few, name) < getattr(many, name), name
    assert few.nats_nodes == 3


def test_heartbeats_that_fill_a_gateway_are_an_error() -> None:
    with pytest.raises(ValueError, match="on heartbeats alone"):
        needed(costs_of(all_results()), Assumptions(users=1_000_000), 200)


@pytest.mark.parametrize(("carries", "most"), [(0, STEP), (300, 288), (100_000, 1024)])
def test_the_search_for_users_ends_at_the_last_step_that_holds(carries: int, most: int) -> None:
    assert most_users(lambda users: users <= carries) == most


# --- the simulator ----------------------------------------------------------------------------------------------------


def test_the_simulated_cell_slows_down_with_the_times_of_its_models() -> None:
    result = sample_result(Cell(16, 4, 2, answer_tokens=16))
    slow, slower = (predict(replace(result, slower=factor)) for factor in (10.0, 20.0))
    assert slower.tokens_per_s == pytest.approx(slow.tokens_per_s / 2, rel=0.15)
    assert slower.tpot_ms == pytest.approx(2 * slow.tpot_ms, rel=0.15)
    # In a closed loop all sessions are always open.
    answer_ms = slow.ttft_ms + 15 * slow.tpot_ms
    assert slow.tokens_per_s == pytest.approx(16 * 16 * 1e3 / answer_ms, rel=0.2)


# --- the report -------------------------------------------------------------------------------------------------------


def test_without_cells_the_report_says_that_nothing_ran(tmp_path: Path) -> None:
    text = write_report(full_plan(), tmp_path / "scale", Assumptions()).read_text()
    assert NOT_RUN in text
    assert text.count("not run yet") == len(full_plan())


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = sample_result(CENTRE)
    write_result(path_of(CENTRE, tmp_path), result)
    assert read_cell(CENTRE, tmp_path) == result


def test_the_report_has_costs_answer_growth_and_errors_of_the_simulator() -> None:
    void = sample_result(full_plan()[-1], complaints=["something else used 9.0% of a core"])
    results = [*all_results()[:-1], void]
    costs = fitted(results)
    assert costs is not None
    answer = needed(costs, Assumptions(), 200)
    text = markdown(full_plan(), results, costs, Assumptions(), answer)
    assert "something else used 9.0% of a core" in text
    assert f"| gateways | {answer.gateways} |" in text
    assert f"| controllers | {answer.controllers} | {answer.controller_share:.0%} of a core each |" in text
    assert "11 of 11 cells, at worst 5.0%" in text
    assert "None does." in text
    assert f"| {VERIFIER} | 100 |" in text  # µs a token
    assert "test, 2026-01-01" in text


def test_too_few_cells_are_not_fitted() -> None:
    few = all_results()[: LEAST_CELLS - 1]
    assert fitted(few) is None
    assert f"{len(few)} cells count" in markdown(full_plan(), few, None, Assumptions(), None)
