"""Goodput: the window with the most accepted tokens per millisecond of the whole batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from awc.estimators.verifier_cost import VerifierCostLine
from awc.policies.goodput import GoodputPair, GoodputPolicy, goodputs
from awc.policy import DEFAULT_CHOICE
from shared.protocol.messages import MAX_WINDOW, PairReport
from tests.awc.worlds import ANY_REPORT, STOP_AND_WAIT, WINDOWS, World


def run(pair: GoodputPair, world: World, num_reports: int, window: int) -> list[int]:
    """The windows chosen, each in force for the next report."""
    windows = []
    for _ in range(num_reports):
        window = pair.decide(world.report(window)).window
        windows.append(window)
    return windows


@pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("rtt_ms", [0.0, 30.0, 150.0])
@pytest.mark.parametrize("sessions", [1, 16, 64])
def test_the_window_chosen_is_nearly_as_good_as_the_best(acceptance: float, rtt_ms: float, sessions: int) -> None:
    world = World(acceptance, rtt_ms, per_token_ms=0.3, sessions=sessions)
    windows = run(GoodputPolicy(STOP_AND_WAIT, assumed_matches=0.0).for_pair(), world, 300, window=4)
    speeds = [world.speed(window) for window in windows[100:]]
    assert sum(speeds) / len(speeds) >= 0.95 * world.best()


def test_goodput_counts_the_whole_batch_with_the_same_window() -> None:
    """Expected by hand: batch * (1 + a + a^2) tokens over trip, two draft steps and a pass of batch * 3 tokens."""
    cost = VerifierCostLine()
    for num_tokens in (4.0, 40.0) * 200:
        cost.observe(num_tokens, 10 + 0.5 * num_tokens)
    seen = World(rtt_ms=20.0, draft_ms=5.0, sessions=8).report(2)
    promised = goodputs(0.5, seen, cost)
    tokens = seen.batch * 3
    assert promised[2] == pytest.approx(seen.batch * 1.75 / (20 + 2 * 5 + 10 + 0.5 * tokens), rel=1e-3)
    assert promised[0] == pytest.approx(seen.batch / (10 + 0.5 * seen.batch), rel=1e-3)
    assert len(promised) == MAX_WINDOW + 1


def test_a_fuller_batch_gets_a_shorter_window_and_an_emptier_one_a_longer_again() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.9, rtt_ms=10.0, per_token_ms=0.5, sessions=2)
    alone = run(pair, world, 200, window=4)[-1]
    world.sessions = 64
    crowded = run(pair, world, 400, window=alone)[-1]
    world.sessions = 2
    again = run(pair, world, 400, window=crowded)[-1]
    assert crowded < alone / 2
    assert again > alone / 2


def test_a_draft_that_gets_worse_is_noticed_however_long_it_was_good() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.95, rtt_ms=0.0)
    window = run(pair, world, 1000, window=4)[-1]
    world.acceptance = 0.4
    late = run(pair, world, 40, window)[20:]
    assert sum(map(world.speed, late)) / len(late) >= 0.9 * world.best() > 1.3 * world.speed(window)


def test_pairs_of_one_verifier_share_what_its_passes_cost() -> None:
    policy, world = GoodputPolicy(STOP_AND_WAIT), World(0.9, rtt_ms=0.0, per_token_ms=2.0)
    run(policy.for_pair(), world, 300, window=4)
    seen = world.report(4)
    informed, alone = policy.for_pair().decide(seen), GoodputPolicy(STOP_AND_WAIT).for_pair().decide(seen)
    assert informed.window < alone.window


def test_the_pairs_of_one_verifier_share_its_line() -> None:
    policy = GoodputPolicy(STOP_AND_WAIT)
    ones, other = [policy.for_pair() for _ in range(2)], policy.for_pair()
    for pair in ones:
        pair.decide(World().report(4))
    other.decide(World(verifier_id="cloud.00000000000b").report(4))
    assert policy.costs.of("cloud.00000000000b", VerifierCostLine).weight == 1
    assert policy.costs.of(World().verifier_id, VerifierCostLine).weight > 1


def test_without_a_judged_guess_or_a_pass_the_start_holds() -> None:
    pair = GoodputPolicy(DEFAULT_CHOICE).for_pair()
    silent, idle = World(base_ms=0.0), World()
    assert pair.decide(silent.report(8)) == DEFAULT_CHOICE
    assert GoodputPolicy(DEFAULT_CHOICE).for_pair().decide(idle.report(0)) == DEFAULT_CHOICE


def test_the_scheme_of_the_start_stays() -> None:
    for start in (STOP_AND_WAIT, DEFAULT_CHOICE):
        pair, world = GoodputPolicy(start).for_pair(), World(0.95)
        for _ in range(50):
            choice = pair.decide(world.report(start.window))
        assert choice == start.with_window(choice.window)
        assert choice.window != start.window


def test_a_gain_below_the_margin_changes_nothing() -> None:
    world = World(0.8, rtt_ms=20.0, sessions=1)
    near = max(window for window in WINDOWS if world.speed(window) > 0.95 * world.best())
    seen = replace(world.report(near), matched=800, mismatched=200, pass_ms=30.0)
    for margin, stays in ((0.1, True), (0.0, False)):
        pair = GoodputPolicy(STOP_AND_WAIT.with_window(near), margin=margin).for_pair()
        assert ({pair.decide(seen).window for _ in range(50)} == {near}) == stays


def test_drafting_is_tried_again_after_a_while_at_window_0_and_kept_when_the_draft_got_better() -> None:
    pair, world = GoodputPolicy(STOP_AND_WAIT).for_pair(), World(0.1, rtt_ms=60.0)
    windows = run(pair, world, 400, window=4)
    assert windows.count(0) > 300
    assert set(windows[-200:]) != {0}
    world.acceptance = 0.95
    assert world.best() > 1.5 * world.speed(0)
    assert min(run(pair, world, 400, windows[-1])[-100:]) > 0


@pytest.mark.parametrize(
    "wrong", [{"half_life": 0.0}, {"margin": -0.1}, {"assumed_matches": -1.0}, {"margin": float("nan")}]
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GoodputPolicy(STOP_AND_WAIT, **wrong)


@given(st.lists(ANY_REPORT, max_size=40))
def test_whatever_is_reported_the_choice_is_a_window_of_the_start_and_follows_from_the_reports(
    reports: list[PairReport],
) -> None:
    pair, again = GoodputPolicy(STOP_AND_WAIT).for_pair(), GoodputPolicy(STOP_AND_WAIT).for_pair()
    for seen in reports:
        choice = pair.decide(seen)
        assert choice == again.decide(seen)
        assert choice == STOP_AND_WAIT.with_window(choice.window)
