"""Fair shares of a verifier: the best depths, no session starves, and where tokens are free nothing is cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace as changed

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice
from awc.wrappers.fair_share import FairSharePair, FairSharePolicy, PairShare, SharedVerifier, fair_depths, slack
from shared.protocol.messages import MAX_WINDOW, PairReport
from tests.awc.reports import SEEN as ONE

WIDE = WindowChoice(16, 2, free_run=True)
SEEN = changed(ONE, window=16, drafted=40, matched=8, draft_ms=5.0, queue=0.5, batch=8.0, pass_tokens=40.0)


def speed(acceptance: float, depth: int) -> float:
    return sum(acceptance**k for k in range(depth + 1))


def fairness(depths: tuple[int, ...], acceptance: tuple[float, ...], base_ms: float, token_ms: float) -> float:
    pass_ms = base_ms + token_ms * (len(depths) + sum(depths))
    return sum(math.log(speed(a, k) / pass_ms) for a, k in zip(acceptance, depths, strict=True))


@pytest.mark.parametrize("token_ms", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("acceptance", [(0.9, 0.9, 0.9), (0.95, 0.6, 0.3), (0.8, 0.5, 0.5)])
def test_no_other_depths_have_a_greater_sum_of_logarithms(acceptance: tuple[float, ...], token_ms: float) -> None:
    found = fair_depths(acceptance, [1] * 3, 20.0, token_ms)
    best = max(itertools.product(range(12), repeat=3), key=lambda depths: fairness(depths, acceptance, 20.0, token_ms))
    ours = fairness(tuple(map(math.floor, found)), acceptance, 20.0, token_ms)
    assert ours > fairness(best, acceptance, 20.0, token_ms) - 0.01


def test_where_tokens_cost_nothing_no_depth_is_cut() -> None:
    assert fair_depths([0.9, 0.4], [1, 1], 20.0, 0.0) == [MAX_WINDOW, MAX_WINDOW]


def test_more_sessions_leave_less_depth_to_each() -> None:
    depths = [int(fair_depths([0.8], [n], 20.0, 0.5)[0]) for n in (1.0, 8.0, 64.0, 512.0)]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[-1]


def test_a_better_draft_may_go_deeper() -> None:
    shallow, deep = fair_depths([0.5, 0.9], [1, 1], 20.0, 1.0)
    assert shallow < deep


def test_a_depth_that_moves_by_a_little_is_left_as_it_is() -> None:
    verifier, shares = SharedVerifier(), [PairShare() for _ in range(8)]
    for num_tokens in range(1, 200):
        verifier.cost.observe(num_tokens, 10.0 + num_tokens)
    seen = changed(SEEN, pass_tokens=0.0)  # no sample of the cost line

    def depths(acceptance: float) -> set[int]:
        for _ in range(3):
            found = {verifier.depth(share, acceptance, seen) for share in shares}
        return found

    rates = np.linspace(0.5, 0.95, 400).tolist()
    up = [depths(rate) for rate in rates]
    down = [depths(rate) for rate in rates[::-1]][::-1]
    exact = [fair_depths([rate] * 8, [1] * 8, verifier.cost.base_ms, verifier.cost.per_token_ms)[0] for rate in rates]
    assert up != down, "where a depth changes depends on where it comes from"
    for found in (up, down):
        assert all(len(each) == 1 for each in found)
        near = [slack(min(each)) for each in found]
        assert all(
            min(each) - most <= depth < min(each) + 1 + most
            for each, depth, most in zip(found, exact, near, strict=True)
        )


def decided(pairs: Sequence[FairSharePair], seen: PairReport, rounds: int = 40) -> list[WindowChoice]:
    """The choices of pairs of one verifier, after some reports of each. Longer passes take more time."""
    for number in range(rounds):
        tokens = 20.0 + number
        report = changed(seen, pass_tokens=tokens, pass_ms=10.0 + tokens, batch=float(len(pairs)))
        choices = [pair.decide(report) for pair in pairs]
    return choices


def pairs_of(num: int, policy: FairSharePolicy) -> list[FairSharePair]:
    return [policy.for_pair() for _ in range(num)]


RIGHT = changed(SEEN, matched=99, mismatched=1)


def test_windows_are_cut_on_a_shared_verifier_and_kept_on_an_unshared_one() -> None:
    shared = decided(pairs_of(64, FairSharePolicy(StaticPolicy(WIDE))), SEEN)
    assert {choice.window for choice in shared} < set(range(WIDE.window))
    assert decided(pairs_of(1, FairSharePolicy(StaticPolicy(WIDE))), RIGHT) == [WIDE]


def test_silent_pairs_take_no_share() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    silent = pairs_of(64, policy)
    assert decided(silent, SEEN)[0].window < WIDE.window
    pair, right = policy.for_pair(), changed(RIGHT, pass_tokens=40.0, pass_ms=50.0)
    alone = [pair.decide(right) for _ in range(2000)]
    assert alone[-1] == WIDE


def test_dropped_pairs_take_no_share_from_then_on() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    others = pairs_of(64, policy)
    pair = policy.for_pair()
    assert decided([pair, *others], RIGHT)[0].window < WIDE.window
    decided([pair], RIGHT, rounds=8)  # the depths were just updated
    others.clear()
    assert decided([pair], RIGHT, rounds=8) == [WIDE]


def test_a_choice_that_is_cut_keeps_its_scheme() -> None:
    pair = FairSharePolicy(StaticPolicy(WIDE)).for_pair()
    others = (WindowChoice(16, 4, free_run=False), WindowChoice(16, 2, free_run=True, min_confidence=0.5))
    for depth in (1, 2, 1):
        for choice in (WIDE, WIDE, *others, WIDE):
            cut = pair.cut(choice, depth, SEEN)
            assert cut == choice.with_window(3 * depth), "in the passes that begin until the first has its verdict"


def test_a_pair_without_sessions_takes_no_share() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    idle = pairs_of(64, policy)
    decided(idle, changed(SEEN, num_sessions=0))
    assert decided(pairs_of(1, policy), RIGHT, rounds=200) == [WIDE]


def test_a_pair_that_was_cut_to_nothing_is_tried_again() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    others = pairs_of(64, policy)
    pair, wrong = policy.for_pair(), changed(SEEN, matched=0, mismatched=8)
    for _ in range(100):
        decided(others, RIGHT, rounds=1)
        pair.decide(changed(wrong, pass_tokens=20.0, pass_ms=30.0, batch=17.0))
    undrafted = changed(wrong, window=0, mismatched=0, pass_tokens=20.0, pass_ms=30.0, batch=17.0)
    windows = []
    for _ in range(800):
        decided(others, RIGHT, rounds=1)
        windows.append(pair.decide(undrafted).window)
    assert windows[0] == 0
    assert windows[-1] > 0


def test_one_wrong_guess_does_not_cut_a_new_pair_to_nothing() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    decided(others := pairs_of(8, policy), RIGHT)
    first = changed(SEEN, matched=0, mismatched=1)
    assert decided([policy.for_pair(), *others], first, rounds=1)[0].window > 0


def test_pairs_decided_together_decide_what_each_would_alone() -> None:
    together, alone = FairSharePolicy(StaticPolicy(WIDE)), FairSharePolicy(StaticPolicy(WIDE))
    ones, others = pairs_of(12, together), pairs_of(12, alone)
    for number in range(60):
        reports = [
            changed(SEEN, matched=index, mismatched=number % 3, pass_tokens=20.0 + number, pass_ms=30.0 + number)
            for index in range(12)
        ]
        expected = [pair.decide(seen) for pair, seen in zip(others, reports, strict=True)]
        assert together.decide_all(ones, reports) == expected
    assert len({choice.window for choice in expected}) > 1


def test_a_cut_leaves_room_for_the_passes_that_begin_until_a_verdict_comes() -> None:
    policy = FairSharePolicy(StaticPolicy(WIDE))
    assert policy.for_pair().cut(WIDE, 2, changed(SEEN, rtt_ms=0.0)).window == 4
    assert policy.for_pair().cut(WIDE, 2, changed(SEEN, rtt_ms=80.0)).window == 8
    assert policy.for_pair().cut(WIDE, 0, SEEN) == WindowChoice(0, 1, free_run=True)
    assert policy.for_pair().cut(WIDE, MAX_WINDOW, SEEN) is WIDE


def test_a_round_trip_that_wavers_around_a_number_of_passes_moves_no_window() -> None:
    pair = FairSharePolicy(StaticPolicy(WIDE)).for_pair()
    windows = {pair.cut(WIDE, 2, changed(SEEN, rtt_ms=rtt_ms)).window for rtt_ms in (39.0, 41.0, 38.0, 42.0)}
    assert windows == {6}
    assert pair.cut(WIDE, 2, changed(SEEN, rtt_ms=60.0)).window == 8


def test_the_name_is_that_of_the_policy_whose_windows_are_cut() -> None:
    assert FairSharePolicy(StaticPolicy(WIDE)).name == StaticPolicy.name


@pytest.mark.parametrize(
    "absurd", [{"rtt_ms": 1e15}, {"pass_ms": 0.0}, {"pass_ms": 1e15, "pass_tokens": 1e15}], ids=str
)
def test_absurd_reports_only_ever_shorten_a_window(absurd: dict[str, float]) -> None:
    pair = FairSharePolicy(StaticPolicy(WIDE)).for_pair()
    for _ in range(50):
        assert 0 <= pair.decide(changed(SEEN, **absurd)).window <= WIDE.window
