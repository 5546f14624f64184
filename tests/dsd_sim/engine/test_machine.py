"""Times of the services beside their models, and models that share a machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice
from dsd_sim.engine.world import PASS, STEP, World
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.report import report_of
from shared.protocol.messages import PairReport
from tests.dsd_sim.builders import a_fleet, a_world, check_fates, stop_and_wait, tpot_ms

PASS_MS, STEP_MS = 20.0, 8.0


def shared(*, pass_slowdown: float = 1.0, step_slowdown: float = 1.0, window: int = 8, rtt_ms: float = 0.0) -> World:
    world = a_world(
        1, tokens=2000, rtt_ms=rtt_ms, step_ms=STEP_MS, weights=(PASS_MS, 0, 0, 0, 0, 0, 0), num_logged=20000
    )
    world.pairs["window"] = window
    world.clock["pass_slowdown"], world.clock["step_slowdown"] = pass_slowdown, step_slowdown
    return world


def test_a_verifier_beside_which_a_draft_model_always_runs_is_slowed_down() -> None:
    """Wrong guesses keep the drafter busy, and the verifier decodes alone."""
    world = shared(pass_slowdown=1.5, window=64)
    a_fleet(world, rate=0.0).run()
    assert tpot_ms(world)[0] == pytest.approx(1.5 * PASS_MS, rel=0.01)


def test_only_the_base_time_of_a_pass_is_slowed_down() -> None:
    world = shared(pass_slowdown=1.5, window=64)
    world.nodes["weights"] = (15.0, 0, 5.0, 0, 0, 0, 0)  # tokens of a pass: one, as all guesses are wrong
    a_fleet(world, rate=0.0).run()
    assert tpot_ms(world)[0] == pytest.approx(1.5 * 15.0 + 5.0, rel=0.01)


def test_a_drafter_beside_which_a_pass_always_runs_is_slowed_down() -> None:
    world = shared(step_slowdown=2.0, window=64)
    a_fleet(world, rate=1.0).run()
    assert tpot_ms(world)[0] == pytest.approx(2.0 * STEP_MS, rel=0.02)


def test_models_that_run_in_turn_do_not_slow_each_other_down() -> None:
    """Stop-and-wait with one session: no pass runs while a draft step does."""
    alone, beside = (
        a_world(1, tokens=600, choice=stop_and_wait(4), rtt_ms=10, step_ms=STEP_MS, weights=(PASS_MS, 0, 0, 0, 0, 0, 0))
        for _ in range(2)
    )
    beside.clock["pass_slowdown"] = beside.clock["step_slowdown"] = 3.0
    for world in (alone, beside):
        a_fleet(world, rate=0.8).run()
    assert tpot_ms(beside)[0] == pytest.approx(tpot_ms(alone)[0], rel=0.005)  # but for the first pass


def test_a_pass_is_slowed_down_for_as_long_as_steps_run_beside_it() -> None:
    world = shared(pass_slowdown=1.5, step_slowdown=1.25, window=4, rtt_ms=30)
    a_fleet(world, rate=0.7).run()
    check_fates(world)
    log = world.log[: world.clock[0]["num_logged"]]
    passes, steps = log[log["kind"] == PASS], log[log["kind"] == STEP]
    assert len(passes) > 100
    assert len(steps) > 100
    for these, others, alone_ms, slowdown in ((passes, steps, PASS_MS, 1.5), (steps, passes, STEP_MS, 1.25)):
        for each in these[1:-1]:
            overlaps = np.minimum(others["end"], each["end"]) - np.maximum(others["start"], each["start"])
            beside_ms = overlaps[overlaps > 0].sum()
            assert each["end"] - each["start"] == pytest.approx(alone_ms + (1 - 1 / slowdown) * beside_ms, abs=1e-6)
    assert world.nodes["busy_ms"][0] == pytest.approx((passes["end"] - passes["start"]).sum())
    assert world.devices["busy_ms"][0] == pytest.approx((steps["end"] - steps["start"]).sum())


def scenario(rate: float, **machine: float) -> Scenario:
    guesses = {"kind": "independent", "rate": rate}
    return Scenario.model_validate(
        {
            "name": "machine",
            "workload": {
                "kind": "closed",
                "num_clients": 1,
                "num_requests": 40,
                "lengths": {"prompt": 30, "answer": 400},
            },
            "edge": ({"count": 1, "times": {"step_ms": 5.0}, "link": {"rtt_ms": 20.0}, "guesses": guesses},),
            "cloud": ({"count": 1, "times": {"base_ms": 20.0}},),
            "machine": {"times": machine},
            "policies": {"window": 1, "stop_and_wait": True},
        }
    )


def test_the_time_of_a_request_at_its_gateway_delays_its_first_token_only(tmp_path: Path) -> None:
    found = []
    for request_ms in (0.0, 15.0):
        made = scenario(0.9, request_ms=request_ms)
        fleet = make_fleet(made, tmp_path)
        fleet.run()
        found.append(report_of(made, fleet))
    assert found[1].ttft_ms.mean - found[0].ttft_ms.mean == pytest.approx(15.0, abs=1e-6)
    assert found[1].tpot_ms.mean == pytest.approx(found[0].tpot_ms.mean, rel=1e-6)


def test_messages_and_gaps_lengthen_a_round_of_stop_and_wait(tmp_path: Path) -> None:
    """A round of one guess has two messages, a pass with one session and a step, and yields 1.5 tokens."""
    times = {}
    for name, machine in (("none", {}), ("message", {"message_ms": 2.0}), ("gaps", GAPS)):
        made = scenario(0.5, **machine)
        fleet = make_fleet(made, tmp_path)
        fleet.run()
        times[name] = report_of(made, fleet).tpot_ms.mean
    assert times["message"] - times["none"] == pytest.approx(2 * 2.0 / 1.5, rel=0.05)
    assert times["gaps"] - times["none"] == pytest.approx((1.0 + 0.5 + 0.25) / 1.5, rel=0.05)


GAPS = {"pass_gap_ms": 1.0, "session_gap_ms": 0.5, "step_gap_ms": 0.25}


def test_a_pass_of_a_size_with_an_extra_time_takes_longer() -> None:
    world = a_world(1, tokens=50, weights=(20, 0, 0, 0, 0, 0, 0))
    world.requests["device"] = -1
    world.nodes["extra_ms"][0, 0] = 3.0
    a_fleet(world).run()
    assert tpot_ms(world)[0] == pytest.approx(23.0)


class Witness:
    """A policy that notes whether pairs share a machine."""

    name = "witness"

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def for_pair(self) -> PairControl:
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        self.seen.add(seen.shares_machine)
        return DEFAULT_CHOICE


@pytest.mark.parametrize("is_given", [True, False])
def test_policies_learn_whether_the_scenario_has_one_machine(is_given: bool, tmp_path: Path) -> None:
    made = scenario(0.9).model_copy(update={} if is_given else {"machine": None})
    fleet = make_fleet(made, tmp_path)
    fleet.policy = policy = Witness()
    fleet.run()
    assert policy.seen == {is_given}
