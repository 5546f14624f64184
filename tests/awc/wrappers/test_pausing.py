"""Rests: drafting in vain is given up for a while, tried again, and taken up where it is of use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from awc.estimators.trial import PATIENCE
from awc.policies.adaptive import AdaptivePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.registry import POLICIES
from awc.wrappers.resting import RESTING, RestingPair, RestingPolicy, Rests
from shared.protocol.messages import PairReport

RESTS = Rests(
    look=4,
    longest_look=6,
    least_judged=16,
    doubtful_share=0.1,
    outpaced_look=2,
    outpaced_judged=12,
    outpaced_share=0.4,
    sure=1.0,
    first=5,
    trusted=6,
    longest=12,
    settling=1,
    compared=3,
    hasty=1.0,
    light=2,
)


class Recorder:
    """A control that counts what it sees."""

    def __init__(self) -> None:
        self.num_seen = 0

    def decide(self, seen: PairReport) -> WindowChoice:
        self.num_seen += 1
        return DEFAULT_CHOICE


def report(matched: int = 0, late: int = 0, *, mismatched: int = 0, discarded: int = 0) -> PairReport:
    return PairReport(
        verifier_id="cloud.0123456789ab",
        num_sessions=8,
        window=8,
        drafted=matched + mismatched + discarded,
        matched=matched,
        mismatched=mismatched,
        late=late,
        discarded=discarded,
        draft_ms=7.0,
        rtt_ms=30.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
    )


USEFUL = report(matched=12, late=4)
LATE = report(matched=20, late=20)
HARDLY = report(matched=40, late=38)  # of use: no more than is doubtful, and more than the margin
NOTHING = report()
IDLE = changed(NOTHING, num_sessions=0)
AT_REST = changed(NOTHING, window=0)  # a token takes as long as with drafts
SLOWER = changed(AT_REST, tpot_ms=31.0)  # by more than the margin


def written(seen: PairReport, number: int) -> PairReport:
    """The report when another token has been written, which moves the time per token a little."""
    return changed(seen, tpot_ms=seen.tpot_ms + 1e-6 * (number % 2))


def is_resting(pair: RestingPair, reports: list[PairReport]) -> list[bool]:
    return [pair.decide(written(each, number)) == RESTING for number, each in enumerate(reports)]


def test_a_pair_whose_guesses_are_of_use_never_rests() -> None:
    assert not any(is_resting(RestingPair(Recorder(), RESTS), [USEFUL] * 100))


def test_a_control_that_decides_for_nothing_by_itself_may_come_back_when_it_likes() -> None:
    class Idle(Recorder):
        def decide(self, seen: PairReport) -> WindowChoice:
            super().decide(seen)
            return WindowChoice(0, 1, free_run=True) if self.num_seen < 100 else DEFAULT_CHOICE

    pair = RestingPair(Idle(), RESTS)
    choices = [pair.decide(NOTHING) for _ in range(100)]
    assert [choice.window for choice in choices] == [0] * 99 + [DEFAULT_CHOICE.window]


def test_pairs_decided_together_rest_as_each_would_alone() -> None:
    policy = RestingPolicy(AdaptivePolicy(DEFAULT_CHOICE), RESTS)
    together, alone = ([policy.for_pair() for _ in range(3)] for _ in range(2))
    for number in range(60):
        reports = [USEFUL, LATE, [USEFUL, LATE][number // 20 % 2]]
        expected = [pair.decide(seen) for pair, seen in zip(alone, reports, strict=True)]
        assert policy.decide_all(together, reports) == expected
    assert policy.decide_all([], []) == []


def followed(pair: RestingPair, reports: list[PairReport], num: int) -> list[bool]:
    """Whether a pair rests after each of `num` reports: of the first kind while it drafts, of the second at rest."""
    found = [False]
    for number in range(num):
        found.append(pair.decide(written(reports[found[-1]], number)) == RESTING)
    return found[1:]


@pytest.mark.parametrize(("in_vain", "num"), [(LATE, 4), (NOTHING, 6)])
def test_drafting_in_vain_is_given_up_and_tried_again_after_rests_twice_as_long(in_vain: PairReport, num: int) -> None:
    rests = followed(RestingPair(Recorder(), RESTS), [in_vain, AT_REST], 60)
    again = [False] * num  # the report that ends a rest was made at rest, and isn't looked at
    expected = again[1:] + [True] * 5 + again + [True] * 10 + 3 * (again + [True] * 12)
    assert rests == expected[:60]


def test_few_judged_guesses_are_not_enough_to_rest() -> None:
    few = report(matched=3, late=3)
    rests = followed(RestingPair(Recorder(), RESTS), [few, AT_REST], 7)
    assert rests.index(True) == 5, "the sixth report has seen sixteen"


def test_a_share_that_may_be_chance_is_looked_at_for_longer() -> None:
    unclear, clear = (
        report(matched=10, late=9),
        report(matched=40, late=38),
    )  # 1 and 2 of use, where 1 and 4 are doubtful
    assert followed(RestingPair(Recorder(), RESTS), [unclear, AT_REST], 7).index(True) == 5
    assert followed(RestingPair(Recorder(), RESTS), [clear, AT_REST], 7).index(True) == 3


def test_guesses_that_nobody_judged_are_not_held_against_a_deep_window() -> None:
    deep = report(matched=4, late=0, mismatched=4, discarded=500)
    assert not any(followed(RestingPair(Recorder(), RESTS), [deep, AT_REST], 100))


def test_a_rest_that_makes_tokens_slower_is_over_at_once_and_doubted_less_and_less_often() -> None:
    rests = followed(RestingPair(Recorder(), RESTS), [HARDLY, SLOWER], 60)
    cycle = [True] * 4  # one report settles, three are compared
    expected = [False] * 3 + cycle + [False] * (6 + 4) + cycle + 3 * ([False] * (12 + 4) + cycle)
    assert rests == expected[:60]


def test_a_rest_from_guesses_that_can_not_have_helped_is_no_mistake_however_long_tokens_take() -> None:
    rests = followed(RestingPair(Recorder(), RESTS), [LATE, SLOWER], 8)
    assert rests == [False] * 3 + [True] * 5


def test_a_pair_that_waits_for_its_first_verdict_is_not_doubted() -> None:
    waiting = [changed(NOTHING, tpot_ms=0.0)] * 50 + [NOTHING] * 50  # a token was written long ago, none since
    pair = RestingPair(Recorder(), RESTS)
    assert not any(pair.decide(seen) == RESTING for seen in waiting)


def test_drafting_that_others_cut_to_nothing_is_not_doubted() -> None:
    assert not any(is_resting(RestingPair(Recorder(), RESTS), [AT_REST] * 50))


def test_a_rest_that_turned_out_right_makes_doubts_as_frequent_as_at_first() -> None:
    pair = RestingPair(Recorder(), RESTS)
    followed(pair, [HARDLY, SLOWER], 40)  # nothing would be doubted for twelve reports after the next mistake
    followed(pair, [LATE, AT_REST], 60)
    rests = followed(pair, [HARDLY, SLOWER], 60)
    ends = [number for number in range(1, 60) if rests[number - 1] and not rests[number]]
    assert ends[2] - ends[1] == 6 + 4 + 4, "not doubted for six reports, looked at for four, at rest for four"


def test_reports_of_a_rest_with_the_old_window_in_force_are_not_compared() -> None:
    old = changed(SLOWER, window=8)
    assert followed(RestingPair(Recorder(), RESTS), [HARDLY, old], 9) == [False] * 3 + [True] * 5 + [False]


def test_a_rest_is_put_off_while_half_as_many_sessions_share_the_drafter() -> None:
    pair, few = RestingPair(Recorder(), RESTS), changed(USEFUL, num_sessions=4)
    assert is_resting(pair, [LATE] * 4)[-1]
    assert is_resting(pair, [changed(AT_REST, num_sessions=5)]) == [True]
    assert is_resting(pair, [changed(AT_REST, num_sessions=4)]) == [True]
    assert not any(is_resting(pair, [few] * 50))
    assert is_resting(pair, [AT_REST] * 4) == [True] * 3 + [False], "one report of five was made before"


def test_a_moment_of_few_sessions_between_many_ends_no_rest() -> None:
    pair, few = RestingPair(Recorder(), replace(RESTS, first=12)), changed(AT_REST, num_sessions=1)
    assert is_resting(pair, [LATE] * 4)[-1]
    assert all(is_resting(pair, [AT_REST, few] * 11)), "each of the few is the first one again"


def test_few_sessions_whose_guesses_are_in_vain_too_rest_as_well() -> None:
    pair = RestingPair(Recorder(), RESTS)
    is_resting(pair, [LATE] * 4)
    few = changed(LATE, num_sessions=3)
    assert is_resting(pair, [few]) == [True]
    assert is_resting(pair, [few] * 4) == [False] * 3 + [True]


def test_guesses_of_an_outpaced_drafter_must_be_of_more_use_and_are_doubted_sooner() -> None:
    some = report(matched=40, late=30)  # a quarter is of use
    outpaced, fast = changed(some, pass_ms=40.0), changed(some, pass_ms=70.0)  # 8 sessions get a guess each in 56 ms
    assert is_resting(RestingPair(Recorder(), RESTS), [outpaced] * 2) == [False, True]
    assert not any(is_resting(RestingPair(Recorder(), RESTS), [fast] * 40))


def test_fewer_judged_guesses_are_enough_where_the_target_outpaces_the_drafter() -> None:
    few = report(matched=4, late=4)
    outpaced, fast = changed(few, pass_ms=40.0), changed(few, pass_ms=70.0)
    assert followed(RestingPair(Recorder(), RESTS), [outpaced, AT_REST], 7).index(True) == 2, "the third has seen 12"
    assert followed(RestingPair(Recorder(), RESTS), [fast, AT_REST], 7).index(True) == 3, "the fourth has seen 16"


def test_an_outpaced_drafter_that_never_comes_to_guess_is_not_looked_at_for_longer() -> None:
    outpaced, fast = changed(NOTHING, pass_ms=40.0), changed(NOTHING, pass_ms=70.0)
    assert followed(RestingPair(Recorder(), RESTS), [outpaced, AT_REST], 7).index(True) == 3, "a look of four"
    assert followed(RestingPair(Recorder(), RESTS), [fast, AT_REST], 7).index(True) == 5, "the longest, of six"


def test_most_guesses_of_an_outpaced_drafter_must_be_of_use_by_default_and_that_is_seen_in_four_reports() -> None:
    all_useful, two_thirds = (changed(report(matched=12, late=late), pass_ms=40.0) for late in (0, 4))
    pair = RestingPair(Recorder(), Rests())
    assert not any(is_resting(pair, [all_useful] * 4))
    assert is_resting(pair, [two_thirds] * 4) == [False] * 3 + [True], "the look before was over"


def test_a_rest_that_costs_a_lot_is_over_before_all_reports_are_compared() -> None:
    pair = RestingPair(Recorder(), replace(RESTS, first=12, compared=8))
    much_slower = changed(AT_REST, tpot_ms=70.0)  # more than twice as long: seen in three reports behind the first
    assert followed(pair, [HARDLY, much_slower], 8) == [False] * 3 + [True] * 4 + [False]


def test_one_odd_report_of_a_rest_does_not_make_it_a_mistake() -> None:
    pair = RestingPair(Recorder(), replace(RESTS, first=12, compared=8))
    is_resting(pair, [HARDLY] * 4)
    odd = changed(AT_REST, tpot_ms=300.0)  # prompts were read
    assert all(is_resting(pair, [AT_REST, odd, *[AT_REST] * 8]))


def test_one_odd_report_of_a_rest_that_could_not_be_compared_does_not_end_it() -> None:
    pair = RestingPair(Recorder(), replace(RESTS, first=40, longest=80, compared=8))
    is_resting(pair, [HARDLY] * 4)
    others = [changed(AT_REST, window=8)] * PATIENCE  # the window of before is in force
    assert all(is_resting(pair, [AT_REST, changed(AT_REST, tpot_ms=300.0), *others]))


def test_one_odd_report_of_a_look_does_not_hide_a_mistake() -> None:
    pair = RestingPair(Recorder(), RESTS)
    is_resting(pair, [HARDLY, changed(HARDLY, tpot_ms=300.0), HARDLY, HARDLY])
    assert is_resting(pair, [SLOWER] * 4) == [True, True, True, False]


def test_a_control_sees_nothing_of_a_rest() -> None:
    active = Recorder()
    is_resting(RestingPair(active, RESTS), [LATE] * 4 + [AT_REST] * 4 + [USEFUL])
    assert active.num_seen == 5


def test_after_guesses_that_were_of_use_the_next_rest_is_a_short_one_again() -> None:
    pair = RestingPair(Recorder(), RESTS)
    is_resting(pair, [LATE] * 4 + [AT_REST] * 5 + [LATE] * 2)  # the next rest would be a long one
    assert not any(is_resting(pair, [USEFUL] * 8))
    rests = followed(pair, [LATE, AT_REST], 30)
    assert rests[rests.index(True) :].index(False) == 5


def test_a_pair_without_sessions_neither_begins_nor_ends_a_rest() -> None:
    pair = RestingPair(Recorder(), RESTS)
    assert not any(is_resting(pair, [IDLE] * 50))
    is_resting(pair, [LATE] * 4)
    assert all(is_resting(pair, [IDLE] * 50))


@pytest.mark.parametrize("name", ["ladder", "confidence", "adaptive"])
def test_adaptive_policies_rest_and_the_static_one_does_not(name: str) -> None:
    assert POLICIES[name](DEFAULT_CHOICE).for_pair().decide(LATE).window > 0
    pair, static = POLICIES[name](DEFAULT_CHOICE).for_pair(), POLICIES["static"](DEFAULT_CHOICE).for_pair()
    assert [pair.decide(written(LATE, number)) for number in range(20)][-1] == RESTING
    assert [static.decide(LATE) for _ in range(20)][-1] == DEFAULT_CHOICE


@pytest.mark.parametrize(
    "wrong",
    [
        {"look": 0},
        {"look": 9, "longest_look": 8},
        {"doubtful_share": 1.0},
        {"outpaced_share": 0.01},
        {"outpaced_look": 0},
        {"outpaced_look": 9},
        {"outpaced_judged": 0},
        {"light": 0},
        {"outpaced_judged": 40},
        {"least_judged": 4},
        {"sure": -0.5},
        {"hasty": -0.1},
        {"first": 900},
        {"first": 0},
        {"trusted": 0},
        {"settling": -1},
        {"compared": 2},
        {"margin": -0.1},
    ],
    ids=str,
)
def test_rests_that_can_not_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rests(**wrong)
