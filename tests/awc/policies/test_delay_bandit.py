"""The bandit with a bound by delay: the bound, the windows it settles on, how it follows changes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from awc.policies.delay_bandit import ARMS, DelayBanditPair, DelayBanditPolicy, longest_window
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport
from tests.awc.worlds import ANY_REPORT, STOP_AND_WAIT, World


def run(pair: DelayBanditPair, world: World, num_reports: int, window: int = 4) -> list[int]:
    """The windows chosen, each in force one report late."""
    windows = [window, window]
    for _ in range(num_reports):
        windows.append(pair.decide(world.report(windows[-2])).window)
    return windows[2:]


def mean_speed(world: World, windows: list[int]) -> float:
    return sum(map(world.speed, windows)) / len(windows)


# --- the bound --------------------------------------------------------------------------------------------------------


def fastest_window(acceptance: float, delay_ms: float, draft_ms: float) -> int:
    """By trying every window."""
    tokens, speeds = 1.0, []
    for window in range(1, MAX_WINDOW + 1):
        tokens += acceptance**window
        speeds.append(tokens / (delay_ms + draft_ms * window))
    return 1 + max(range(MAX_WINDOW), key=speeds.__getitem__)


@given(st.floats(0.01, 0.99), st.floats(0, 2000), st.floats(0.1, 50))
def test_the_bound_is_never_below_the_fastest_window_and_hardly_above(
    acceptance: float, delay_ms: float, draft_ms: float
) -> None:
    fastest, bound = fastest_window(acceptance, delay_ms, draft_ms), longest_window(acceptance, delay_ms, draft_ms)
    assert fastest <= bound <= fastest + 2


def test_the_bound_grows_with_the_logarithm_of_the_delay() -> None:
    bounds = [longest_window(0.8, delay_ms, 10.0) for delay_ms in (1e3, 1e4, 1e5, 1e6)]
    steps = [longer - shorter for shorter, longer in pairwise(bounds)]
    assert steps == pytest.approx([math.log(10) / math.log(1 / 0.8)] * 3, abs=2)


def test_below_a_critical_delay_only_one_token_pays() -> None:
    """From 1 to 2 guesses the bound opens where a^2 (D + c) = c (1 + a), at 34.4 ms for a = 0.6 and c = 10 ms."""
    assert [longest_window(0.6, delay_ms, 10.0) for delay_ms in (0.0, 30.0, 34.0)] == [1, 1, 1]
    assert longest_window(0.6, 36.0, 10.0) == 2


@pytest.mark.parametrize(
    ("acceptance", "delay_ms", "draft_ms", "expected"),
    [(0.0, 1e15, 1.0, 1), (1.0, 100.0, 10.0, 64), (1.0, 0.0, 10.0, 1), (0.5, 0.0, 0.0, 64), (1.0, 1e15, 1e-300, 64)],
)
def test_the_bound_is_a_window_at_the_ends_of_its_inputs(
    acceptance: float, delay_ms: float, draft_ms: float, expected: int
) -> None:
    assert longest_window(acceptance, delay_ms, draft_ms) == expected


# --- the bandit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "world",
    [
        World(0.85, rtt_ms=20.0),
        World(0.8, rtt_ms=300.0, draft_ms=10.0),
        World(0.6, rtt_ms=0.0, draft_ms=10.0),
        World(0.9, rtt_ms=10.0, per_token_ms=1.0, sessions=16),
    ],
)
def test_it_settles_on_windows_nearly_as_fast_as_the_best_arm(world: World) -> None:
    windows = run(DelayBanditPolicy(STOP_AND_WAIT).for_pair(), world, 2000)[-1000:]
    assert mean_speed(world, windows) >= 0.9 * world.best(ARMS)
    [(usual, _)] = Counter(windows).most_common(1)
    assert world.speed(usual) >= 0.92 * world.best(ARMS)


def test_it_follows_a_link_that_gets_longer_and_shorter_again() -> None:
    pair, world, window = DelayBanditPolicy(STOP_AND_WAIT).for_pair(), World(0.85, draft_ms=10.0), 4
    usual = []
    for rtt_ms in (0.0, 400.0, 0.0):
        world.rtt_ms = rtt_ms
        windows = run(pair, world, 1200, window)
        window, late = windows[-1], windows[-400:]
        assert mean_speed(world, late) >= 0.85 * world.best(ARMS)
        usual.append(sum(late) / len(late))
    assert usual[1] > 1.5 * max(usual[0], usual[2])


def test_no_window_above_the_bound_is_tried() -> None:
    world = World(0.5, rtt_ms=10.0, draft_ms=10.0)
    bound = longest_window(0.6, 41.5, 10.0)  # higher acceptance and slower passes than are likely to be estimated
    windows = run(DelayBanditPolicy(DEFAULT_CHOICE).for_pair(), world, 400, DEFAULT_CHOICE.window)
    assert windows[4] == DEFAULT_CHOICE.window > bound
    assert max(windows[12:]) <= bound < 6


def test_without_doubt_the_fastest_arm_is_kept_and_with_much_all_are_tried_again_and_again() -> None:
    world = World(0.8, rtt_ms=20.0, draft_ms=10.0)
    curious, content = (
        Counter(run(DelayBanditPolicy(STOP_AND_WAIT, explore=explore, discount=1.0).for_pair(), world, 1500)[-1000:])
        for explore in (2.0, 0.0)
    )
    assert curious.most_common(1)[0][1] < 500
    assert content.most_common(1)[0][1] > 800


def test_an_arm_that_faded_away_is_tried_again() -> None:
    pair, world = DelayBanditPolicy(STOP_AND_WAIT, explore=0.0, discount=0.9).for_pair(), World(0.8, rtt_ms=20.0)
    first, later = (set(run(pair, world, 600)) for _ in range(2))
    assert later >= {1, 2, 3} & first


def test_a_window_that_never_comes_into_force_is_not_learnt_from() -> None:
    pair, report = DelayBanditPolicy(STOP_AND_WAIT).for_pair(), World().report(7)
    assert {pair.decide(report).window for _ in range(500)} == {4, 1}


def test_the_start_holds_until_it_was_measured() -> None:
    for start in (STOP_AND_WAIT, DEFAULT_CHOICE, WindowChoice(0, 1, True)):
        pair, report = DelayBanditPolicy(start).for_pair(), World().report(start.window)
        assert [pair.decide(report) for _ in range(5)] == [start] * 5
        assert pair.decide(changed(report, num_sessions=0)) == start
        assert pair.decide(report).window in ARMS


def test_the_rest_of_a_choice_is_that_of_the_start() -> None:
    start = replace(DEFAULT_CHOICE, min_confidence=0.3)
    pair = DelayBanditPolicy(start).for_pair()
    for _ in range(400):
        choice = pair.decide(World().report(start.window))
        assert choice == start.with_window(choice.window)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"explore": -0.1}, "explore"),
        ({"explore": float("nan")}, "explore"),
        ({"trial_reports": 0}, "trial_reports"),
        ({"settling": -1}, "settling"),
        ({"half_life": 0.0}, "half_life"),
    ],
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DelayBanditPolicy(STOP_AND_WAIT, **wrong)


@given(st.lists(ANY_REPORT, max_size=60), st.booleans())
def test_whatever_is_reported_the_choice_is_a_window_of_the_start_and_follows_from_the_reports(
    reports: list[PairReport], is_in_force: bool
) -> None:
    policy = DelayBanditPolicy(STOP_AND_WAIT, trial_reports=1, settling=0)
    pair, again, window = policy.for_pair(), policy.for_pair(), 4
    for report in reports:
        seen = changed(report, window=window) if is_in_force else report
        choice = pair.decide(seen)
        assert choice == again.decide(seen)
        assert choice == STOP_AND_WAIT.with_window(choice.window)
        window = choice.window
