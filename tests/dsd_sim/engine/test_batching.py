"""Batching: the services' rule and its alternatives in the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from awc.policies.ladder import LadderPolicy
from awc.policy import WindowChoice
from dsd_sim.engine import cloud
from dsd_sim.engine.fleet import FleetChange, SimFleet
from dsd_sim.engine.world import World
from tests.dsd_sim.builders import SLIDING, a_fleet, a_world, check_fates, stop_and_wait, tpot_ms

ALL = (cloud.FIFO, cloud.LAB, cloud.TETRIS, cloud.WORTH)


def with_a_long_prompt(batching: int, short: int = 8) -> World:
    """One prompt of ten passes, followed by three short ones, all without a drafter."""
    world = a_world(4, tokens=5, weights=(10, 0, 0, 0, 0, 0, 0), batching=batching)
    world.requests["device"] = -1
    world.requests["prompt"] = [500, short, short, short]
    world.requests["arrival_ms"] = [0, 1, 1, 1]
    world.nodes["token_budget"] = world.nodes["prefill_chunk"] = 50
    a_fleet(world).run()
    return world


def test_a_long_prompt_delays_short_ones_in_fifo_but_not_in_length_aware_batching() -> None:
    fifo, lab = with_a_long_prompt(cloud.FIFO).requests, with_a_long_prompt(cloud.LAB).requests
    assert fifo["first_ms"].tolist() == [100, 110, 110, 110]
    assert lab["first_ms"][1:].tolist() == [20, 20, 20]
    assert lab["first_ms"][0] > fifo["first_ms"][0]  # nothing is free


def test_with_the_services_rule_short_prompts_overtake_a_long_one_that_goes_on_beside_their_answers() -> None:
    worth, lab = with_a_long_prompt(cloud.WORTH).requests, with_a_long_prompt(cloud.LAB).requests
    assert worth["first_ms"].tolist() == [110, 20, 20, 20]
    assert worth["first_ms"][0] <= lab["first_ms"][0]


def test_with_the_services_rule_a_long_prompt_overtakes_short_ones_that_come_later_and_later() -> None:
    """A prompt of 400 tokens, and for ever one of 50 in every pass of 50."""
    world = a_world(61, tokens=1, weights=(10, 0, 0, 0, 0, 0, 0), batching=cloud.WORTH)
    world.requests["device"] = -1
    world.requests["prompt"] = [400, *[50] * 60]
    world.requests["arrival_ms"] = [0, *range(1, 600, 10)]
    world.nodes["token_budget"] = world.nodes["prefill_chunk"] = 50
    a_fleet(world).run()
    assert world.requests["first_ms"][0] < 400  # alone 80; the last of the short ones comes at 591


def passes(batching: int, token_ms: float) -> float:
    """Passes of a session whose guesses are mostly wrong."""
    world = a_world(1, tokens=300, step_ms=1, rtt_ms=1, weights=(10, 0, token_ms, 0, 0, 0, 0), batching=batching)
    a_fleet(world, rate=0.3).run()
    return float(world.requests[0]["passes"])


def test_tetris_takes_guesses_that_do_not_pay_and_the_services_rule_does_not() -> None:
    assert passes(cloud.WORTH, 20.0) == 300  # a token each
    assert passes(cloud.TETRIS, 20.0) < 0.95 * 300
    assert passes(cloud.TETRIS, 0.0) == pytest.approx(passes(cloud.WORTH, 0.0), rel=0.1)


def test_with_a_small_budget_tetris_takes_the_guesses_likeliest_to_survive() -> None:
    """Two sessions share a budget of 6 tokens. The older one has the worse draft; in FIFO it gets all its guesses."""

    def tpot_of_good(batching: int) -> float:
        world = a_world(2, num_devices=2, tokens=400, step_ms=1, rtt_ms=1, batching=batching)
        world.requests["device"] = [0, 1]
        world.requests["arrival_ms"] = [0, 5]
        world.nodes["token_budget"] = 6
        world.pairs["window"] = 8
        fleet = a_fleet(world)
        fleet.acceptance = [type(fleet.acceptance[0])(0.1), type(fleet.acceptance[0])(0.95)]
        fleet.run()
        return float(tpot_ms(world)[1])

    assert tpot_of_good(cloud.TETRIS) < 0.95 * tpot_of_good(cloud.FIFO)


@pytest.mark.parametrize("batching", ALL)
def test_every_guess_has_one_fate_with_every_batching(batching: int) -> None:
    world = a_world(60, num_devices=8, num_nodes=2, tokens=50, batching=batching)
    rng = np.random.default_rng(3)
    world.requests["device"] = rng.integers(-1, 8, 60)
    world.requests["prompt"] = rng.integers(1, 300, 60)
    world.requests["arrival_ms"] = np.sort(rng.uniform(0, 3000, 60))
    world.nodes["token_budget"], world.nodes["prefill_chunk"] = 64, 32
    a_fleet(world, rate=0.7).run()
    check_fates(world)


def test_the_hop_to_a_verifier_delays_every_message() -> None:
    """Stop-and-wait: a round of 4 takes RTT + two hops + a pass + 4 steps, for 1 + a + ... + a^4 tokens."""
    world = a_world(1, tokens=8000, rtt_ms=10, step_ms=5)
    world.pairs["window"] = world.pairs["chunk"] = 4
    world.pairs["free_run"] = False
    world.nodes["delay_ms"] = 7
    a_fleet(world, rate=0.8).run()
    assert tpot_ms(world)[0] == pytest.approx((10 + 2 * 7 + 20 + 4 * 5) / sum(0.8**i for i in range(5)), rel=0.02)


@pytest.mark.parametrize("choice", [SLIDING, stop_and_wait(6), WindowChoice(16, 5, free_run=False)])
def test_simulating_several_steps_in_one_event_changes_no_result(choice: WindowChoice) -> None:
    """With a confidence threshold each step has an event of its own; here no guess is below the threshold."""

    def outcome(min_confidence: float) -> list[list[float]]:
        world = a_world(80, num_devices=5, num_nodes=2, tokens=70, choice=choice, rtt_ms=25, seed=7)
        rng = np.random.default_rng(7)
        world.requests["device"] = rng.integers(0, 5, 80)
        world.requests["arrival_ms"] = np.sort(rng.uniform(0, 40_000, 80))
        world.devices["jitter_ms"], world.devices["step_ms_per_1000"] = 4.0, 3.0
        world.pairs["min_confidence"] = min_confidence
        start = replace(choice, min_confidence=min_confidence)
        changes = [FleetChange(9000, lambda fleet: fleet.lose("drafters", [1])), FleetChange(15_000, slow_down)]
        a_fleet(world, rate=0.8, policy=LadderPolicy(start), changes=changes).run()
        columns = ("first_ms", "done_ms", "drafted", "accepted", "rejected", "late", "discarded")
        return [world.requests[name].tolist() for name in columns]

    assert outcome(0.0) == outcome(1e-12)


def slow_down(fleet: SimFleet) -> None:
    fleet.world.devices["slowdown"] = 1.7


def colocated(num: int, rate: float, window: int) -> World:
    world = a_world(num, tokens=2000, weights=(20, 0, 0.5, 0, 0, 0, 0))
    world.nodes["draft_window"], world.nodes["draft_ms"], world.nodes["draft_ms_per_session"] = window, 3.0, 0.2
    a_fleet(world, rate=rate, colocated=True).run()
    return world


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_colocated_drafting_takes_the_time_of_its_formula(rate: float) -> None:
    """Three sessions: 4 draft steps of 3 + 2 * 0.2 ms and a pass of 15 tokens, for 1 + a + ... + a^4 tokens."""
    world = colocated(3, rate, window=4)
    round_ms = 4 * (3 + 2 * 0.2) + 20 + 0.5 * 15
    assert tpot_ms(world).mean() == pytest.approx(round_ms / sum(rate**i for i in range(5)), rel=0.03)


def test_colocated_guesses_have_one_fate_and_devices_stay_idle() -> None:
    world = colocated(5, 0.7, window=6)
    requests = world.requests
    fates = requests["accepted"] + requests["rejected"] + requests["discarded"]
    assert (requests["drafted"] == fates).all()
    assert requests["accepted"].sum() > 0.9 * 5 * 2000 * (1 - 1 / sum(0.7**i for i in range(7)))
    assert world.devices["busy_ms"].sum() == 0
