"""Nightjar's bandit: the windows it settles on, how often it explores, what it learns from, the price of leaving 0."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from awc.policies.nightjar import NightjarPair, NightjarPlan, NightjarPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import PairReport
from tests.awc.worlds import ANY_REPORT, STOP_AND_WAIT, World

ARMS = NightjarPolicy(STOP_AND_WAIT).arms


def run(pair: NightjarPair, world: World, num_reports: int, window: int = 4) -> list[int]:
    """The windows chosen, each in force one report late."""
    windows = [window, window]
    for _ in range(num_reports):
        windows.append(pair.decide(world.report(windows[-2])).window)
    return windows[2:]


def mean_speed(world: World, windows: list[int]) -> float:
    return sum(map(world.speed, windows)) / len(windows)


@pytest.mark.parametrize(
    "world",
    [
        World(0.85, rtt_ms=20.0),  # long windows
        World(0.8, rtt_ms=400.0),  # none
        World(0.5, rtt_ms=0.0, draft_ms=10.0),  # a short one
        World(0.9, rtt_ms=10.0, per_token_ms=1.0, sessions=16),
    ],
)
def test_it_settles_on_windows_nearly_as_fast_as_the_best_arm(world: World) -> None:
    windows = run(NightjarPolicy(STOP_AND_WAIT).for_pair(), world, 2400)[-1000:]
    assert mean_speed(world, windows) >= 0.9 * world.best(ARMS)
    [(usual, _)] = Counter(windows).most_common(1)
    assert world.speed(usual) >= 0.92 * world.best(ARMS)


def test_every_arm_is_explored_in_every_block_and_ever_more_rarely() -> None:
    windows = run(NightjarPolicy(STOP_AND_WAIT).for_pair(), World(0.85), 1600)
    rare = [window for window, times in Counter(windows).items() if 0 < times < 200]
    assert set(windows) == set(ARMS)
    assert len(rare) >= len(ARMS) - 3
    early, late = ([window in rare for window in part] for part in (windows[:400], windows[-400:]))
    assert sum(late) < sum(early) / 2


def test_it_comes_back_from_0_when_the_link_gets_better() -> None:
    pair, world = NightjarPolicy(STOP_AND_WAIT).for_pair(), World(0.85, rtt_ms=400.0)
    windows = run(pair, world, 800)
    assert Counter(windows[-200:]).most_common(1)[0][0] == 0
    world.rtt_ms = 5.0
    windows = run(pair, world, 1600, windows[-1])[-600:]
    assert mean_speed(world, windows) >= 0.85 * world.best(ARMS) > 1.5 * world.speed(0)


def test_each_size_of_batch_has_its_own_estimates() -> None:
    pair, world = NightjarPolicy(STOP_AND_WAIT).for_pair(), World(0.65, rtt_ms=10.0, per_token_ms=0.8)
    window, seen = 4, {}
    for _ in range(6):
        for sessions in (1, 48):
            world.sessions, world.tpot_ms = sessions, 0.0
            windows = run(pair, world, 300, window)
            window, seen[sessions] = windows[-1], windows
    for sessions, windows in seen.items():
        world.sessions = sessions
        assert mean_speed(world, windows[:100]) >= 0.8 * world.best(ARMS)
    assert max(seen[48], key=seen[48].count) == 0
    assert max(seen[1], key=seen[1].count) > 0


def test_a_size_of_batch_not_met_before_is_explored_from_the_beginning() -> None:
    pair, world = NightjarPolicy(STOP_AND_WAIT).for_pair(), World(0.85, sessions=3)
    assert len(set(run(pair, world, 2400)[-80:])) < len(ARMS)
    world.sessions = 24
    assert set(run(pair, world, 80)) == set(ARMS)


def test_a_loss_is_averaged_over_bins_unless_a_new_one_is_of_another_size() -> None:
    plan = NightjarPlan()
    for tpot_ms, expected in ((20.0, 20.0), (24.0, 21.0), (50.0, 50.0), (10.0, 10.0)):
        plan.learn(4, tpot_ms, newest=0.25)
        assert plan.losses == {4: expected}


def test_leaving_0_has_to_pay_for_itself_before_the_block_ends() -> None:
    losses = {0: 30.0, 4: 27.0}
    assert NightjarPlan(losses, bins_left=9).next_window(0, price=0.05) == 4
    assert NightjarPlan(losses, bins_left=9).next_window(0, price=0.2) == 0
    assert NightjarPlan(losses, bins_left=9).next_window(4, price=0.2) == 4


@pytest.mark.parametrize(("context", "share_of_0"), [(0, (0.0, 0.3)), (1_000_000, (0.4, 1.0))])
def test_a_drafter_with_much_to_read_is_left_at_0(context: int, share_of_0: tuple[float, float]) -> None:
    """With window 4 a token takes nine tenths of the time, so only the price can keep the pair at 0."""
    pair = NightjarPolicy(STOP_AND_WAIT, arms=(0, 4)).for_pair()
    report = World(context=context).report(4)
    window, num_at_0 = 4, 0
    for _ in range(800):
        seen = changed(report, window=window, tpot_ms=27.0 if window else 30.0, matched=0, mismatched=0)
        window = pair.decide(seen).window
        num_at_0 += window == 0
    assert share_of_0[0] <= num_at_0 / 800 <= share_of_0[1]


def test_a_pair_whose_windows_never_come_into_force_keeps_deciding() -> None:
    report = World().report(5)
    pair = NightjarPolicy(STOP_AND_WAIT).for_pair()
    assert {pair.decide(report).window for _ in range(2000)} <= {4, *ARMS}


def test_the_start_holds_until_it_was_measured() -> None:
    for start in (STOP_AND_WAIT, DEFAULT_CHOICE, WindowChoice(0, 1, True)):
        pair, report = NightjarPolicy(start).for_pair(), World().report(start.window)
        assert [pair.decide(report) for _ in range(5)] == [start] * 5
        assert pair.decide(changed(report, num_sessions=0)) == start


def test_the_rest_of_a_choice_is_that_of_the_start() -> None:
    start = replace(DEFAULT_CHOICE, min_confidence=0.3)
    pair = NightjarPolicy(start).for_pair()
    for _ in range(400):
        choice = pair.decide(World().report(start.window))
        assert choice == start.with_window(choice.window)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"arms": ()}, "arms"),
        ({"arms": (4,)}, "arms"),
        ({"arms": (0, 4, 4)}, "arms"),
        ({"arms": (0, 65)}, "arms"),
        ({"bin_reports": 0}, "bin_reports"),
        ({"settling": -1}, "settling"),
        ({"longest": 0}, "longest"),
        ({"newest": 0.0}, "newest"),
        ({"newest": 1.1}, "newest"),
        ({"catch_up": -0.1}, "catch_up"),
    ],
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NightjarPolicy(STOP_AND_WAIT, **wrong)


@given(st.lists(ANY_REPORT, max_size=60), st.booleans())
def test_whatever_is_reported_the_choice_is_a_window_of_the_start_and_follows_from_the_reports(
    reports: list[PairReport], is_in_force: bool
) -> None:
    policy = NightjarPolicy(STOP_AND_WAIT, bin_reports=1, settling=0)
    pair, again, window = policy.for_pair(), policy.for_pair(), 4
    for report in reports:
        seen = changed(report, window=window) if is_in_force else report
        choice = pair.decide(seen)
        assert choice == again.decide(seen)
        assert choice == STOP_AND_WAIT.with_window(choice.window)
        window = choice.window
