"""The acceptance ladder: where it climbs, where it comes down, what does not move it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awc.policies.ladder import LadderPair, LadderPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

VERIFIER_ID = "cloud.0123456789ab"


def report(matched: int = 0, mismatched: int = 0, **other: int) -> PairReport:
    counts = {"drafted": matched + mismatched, "late": 0, "discarded": 0, "window": 8, "context": 100} | other
    return PairReport(
        verifier_id=VERIFIER_ID,
        num_sessions=1,
        matched=matched,
        mismatched=mismatched,
        draft_ms=10.0,
        rtt_ms=20.0,
        queue=0.5,
        tpot_ms=30.0,
        **counts,
    )


def draft_with(pair: LadderPair, acceptance: float, reports: int, seed: int, guesses: int = 16) -> list[int]:
    """The windows chosen while every guess is right with probability `acceptance`."""
    random_draws = random.Random(seed)
    windows = []
    for _ in range(reports):
        matched = sum(random_draws.random() < acceptance for _ in range(guesses))
        windows.append(pair.decide(report(matched, guesses - matched)).window)
    return windows


def test_a_draft_that_is_nearly_always_right_climbs_to_the_top_one_rung_at_a_time() -> None:
    windows = draft_with(LadderPolicy(DEFAULT_CHOICE).for_pair(), acceptance=0.98, reports=60, seed=1)
    assert windows[-1] == 16
    assert list(dict.fromkeys(windows)) == [8, 12, 16]
    assert windows == sorted(windows)


def test_a_draft_that_is_mostly_wrong_goes_down_to_the_lowest_rung_one_at_a_time() -> None:
    windows = draft_with(LadderPolicy(DEFAULT_CHOICE).for_pair(), acceptance=0.2, reports=60, seed=2)
    assert list(dict.fromkeys(windows)) == [8, 4, 2]
    assert windows == sorted(windows, reverse=True)


def test_the_window_stays_on_its_rung_for_a_draft_that_fits_it() -> None:
    windows = draft_with(LadderPolicy(DEFAULT_CHOICE).for_pair(), acceptance=0.81, reports=400, seed=3)
    assert set(windows) == {8}


def test_a_draft_that_gets_better_again_climbs_back_from_the_lowest_rung() -> None:
    pair = LadderPolicy(DEFAULT_CHOICE).for_pair()
    assert draft_with(pair, acceptance=0.1, reports=60, seed=4)[-1] == 2
    assert draft_with(pair, acceptance=0.98, reports=120, seed=5)[-1] == 16


def test_nothing_moves_before_the_warm_up_and_then_only_once_an_interval() -> None:
    policy = LadderPolicy(WindowChoice(window=2, chunk=1, free_run=True), warm_up=10, interval=5)
    pair = policy.for_pair()
    windows = [pair.decide(report(matched=16)).window for _ in range(26)]
    assert windows == [2] * 9 + [4] * 5 + [8] * 5 + [12] * 5 + [16] * 2


def test_one_bad_sample_does_not_move_the_window_but_lasting_ones_do() -> None:
    pair = LadderPolicy(DEFAULT_CHOICE, warm_up=1, interval=1).for_pair()
    for _ in range(20):
        assert pair.decide(report(matched=13, mismatched=3)).window == 8
    assert pair.decide(report(matched=8, mismatched=8)).window == 8
    assert [pair.decide(report(matched=8, mismatched=8)).window for _ in range(20)][-1] < 8


@pytest.mark.parametrize("rung", range(4))
def test_between_the_ways_up_and_down_the_window_keeps_where_it_came_from(rung: int) -> None:
    policy = LadderPolicy(DEFAULT_CHOICE, warm_up=1, interval=1)
    between = (1 + policy.down_share) / 2 * policy.climbs_at(rung)  # a run length in the gap between two rungs
    matched = round(1000 * between / (1 + between))
    for start in (policy.rungs[rung], policy.rungs[rung + 1]):
        pair = LadderPolicy(WindowChoice(start, 1, True), warm_up=1, interval=1).for_pair()
        assert {pair.decide(report(matched, 1000 - matched)).window for _ in range(50)} == {start}


def test_acceptance_does_not_depend_on_the_window_or_on_guesses_being_late_or_discarded() -> None:
    policy = LadderPolicy(DEFAULT_CHOICE)
    in_time, late = policy.for_pair(), policy.for_pair()
    for _ in range(50):
        seen = report(matched=15, mismatched=1)
        other = report(matched=15, mismatched=1, late=15, discarded=40, drafted=56, window=2)
        assert in_time.decide(seen) == late.decide(other)
    assert late.decide(report()).window > 8


def test_guesses_that_nobody_judged_are_unobserved_and_not_rejected() -> None:
    pair = LadderPolicy(DEFAULT_CHOICE).for_pair()
    windows = {pair.decide(report(drafted=64, discarded=64)).window for _ in range(200)}
    assert windows == {8}


def test_few_guesses_are_gathered_over_reports_before_they_count_as_a_sample() -> None:
    pair = LadderPolicy(DEFAULT_CHOICE, sample_guesses=16, warm_up=2).for_pair()
    windows = [pair.decide(report(matched=1)).window for _ in range(32)]
    assert windows == [8] * 31 + [12]


def test_a_report_with_huge_counts_weighs_no_more_than_any_other_sample() -> None:
    pair = LadderPolicy(DEFAULT_CHOICE, warm_up=1, interval=1).for_pair()
    for _ in range(20):
        pair.decide(report(matched=13, mismatched=3))
    assert pair.decide(report(mismatched=1 << 48)).window in (4, 8)
    assert [pair.decide(report(matched=16)).window for _ in range(60)][-1] == 16


def test_the_rest_of_a_choice_is_that_of_the_start_as_far_as_the_window_holds_it() -> None:
    pair = LadderPolicy(WindowChoice(window=8, chunk=4, free_run=False, min_confidence=0.3)).for_pair()
    assert pair.decide(report()) == WindowChoice(8, 4, False, 0.3)
    for _ in range(60):
        choice = pair.decide(report(mismatched=16))
    assert choice == WindowChoice(window=2, chunk=2, free_run=False, min_confidence=0.3)


@pytest.mark.parametrize(("start", "first"), [(0, 2), (1, 2), (3, 2), (8, 8), (11, 8), (MAX_WINDOW, 16)])
def test_the_start_is_the_highest_rung_not_above_the_wanted_window(start: int, first: int) -> None:
    assert LadderPolicy(WindowChoice(start, 1, True)).for_pair().decide(report()).window == first


@pytest.mark.parametrize("rungs", [(), (0, 2), (4, 2), (2, 2), (8, MAX_WINDOW + 1)])
def test_rungs_that_are_no_ladder_are_refused(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rungs"):
        LadderPolicy(DEFAULT_CHOICE, rungs=rungs)


def test_a_sample_of_no_guesses_is_refused() -> None:
    with pytest.raises(ValueError, match="sample"):
        LadderPolicy(DEFAULT_CHOICE, sample_guesses=0)


count = st.one_of(st.integers(0, 40), st.integers(0, 1 << 48))


@given(st.lists(st.tuples(count, count), max_size=80), st.integers(0, MAX_WINDOW))
def test_whatever_is_reported_the_window_is_a_rung_and_moves_one_rung_at_most(
    counts: list[tuple[int, int]], start: int
) -> None:
    policy = LadderPolicy(WindowChoice(start, 1, True), warm_up=1, interval=1)
    pair, again = policy.for_pair(), policy.for_pair()
    rung = policy.rungs.index(pair.decide(report()).window)
    again.decide(report())
    for matched, mismatched in counts:
        choice = pair.decide(report(matched, mismatched))
        assert choice == again.decide(report(matched, mismatched))
        assert abs(policy.rungs.index(choice.window) - rung) <= 1
        rung = policy.rungs.index(choice.window)
