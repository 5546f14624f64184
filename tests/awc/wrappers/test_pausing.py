"""Pauses: unhelpful drafting stops for a while and resumes where it helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from awc.estimators.trial import PATIENCE
from awc.policies.adaptive import AdaptivePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.registry import POLICIES
from awc.wrappers.pausing import PAUSED, PauseSettings, PausingPair, PausingPolicy
from shared.protocol.messages import PairReport

SETTINGS = PauseSettings(
    check=4,
    longest_check=6,
    least_judged=16,
    doubtful_share=0.1,
    outpaced_check=2,
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
        draft_ms=56.0,
        rtt_ms=30.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
    )


HELPFUL = report(matched=12, late=4)
LATE = report(matched=20, late=20)
HARDLY = report(matched=40, late=38)  # a helpful share above the margin and below the doubtful share
NOTHING = report()
IDLE = changed(NOTHING, num_sessions=0)
IN_PAUSE = changed(NOTHING, window=0)  # a token takes as long as with drafts
SLOWER = changed(IN_PAUSE, tpot_ms=31.0)  # by more than the margin


def written(seen: PairReport, number: int) -> PairReport:
    """The report when another token has been written, which moves the time per token a little."""
    return changed(seen, tpot_ms=seen.tpot_ms + 1e-6 * (number % 2))


def is_paused(pair: PausingPair, reports: list[PairReport]) -> list[bool]:
    return [pair.decide(written(each, number)) == PAUSED for number, each in enumerate(reports)]


def test_a_pair_with_helpful_guesses_never_pauses() -> None:
    assert not any(is_paused(PausingPair(Recorder(), SETTINGS), [HELPFUL] * 100))


def test_a_control_may_choose_window_0_by_itself_and_come_back() -> None:
    class Idle(Recorder):
        def decide(self, seen: PairReport) -> WindowChoice:
            super().decide(seen)
            return WindowChoice(0, 1, free_run=True) if self.num_seen < 100 else DEFAULT_CHOICE

    pair = PausingPair(Idle(), SETTINGS)
    choices = [pair.decide(NOTHING) for _ in range(100)]
    assert [choice.window for choice in choices] == [0] * 99 + [DEFAULT_CHOICE.window]


def test_pairs_decided_together_pause_as_each_would_alone() -> None:
    policy = PausingPolicy(AdaptivePolicy(DEFAULT_CHOICE), SETTINGS)
    together, alone = ([policy.for_pair() for _ in range(3)] for _ in range(2))
    for number in range(60):
        reports = [HELPFUL, LATE, [HELPFUL, LATE][number // 20 % 2]]
        expected = [pair.decide(seen) for pair, seen in zip(alone, reports, strict=True)]
        assert policy.decide_all(together, reports) == expected
    assert policy.decide_all([], []) == []


def followed(pair: PausingPair, reports: list[PairReport], num: int) -> list[bool]:
    """Whether a pair is paused after each of `num` reports: the first while it drafts, the second in a pause."""
    found = [False]
    for number in range(num):
        found.append(pair.decide(written(reports[found[-1]], number)) == PAUSED)
    return found[1:]


@pytest.mark.parametrize(("unhelpful", "num"), [(LATE, 4), (NOTHING, 6)])
def test_unhelpful_drafting_pauses_and_each_further_pause_is_twice_as_long(unhelpful: PairReport, num: int) -> None:
    paused = followed(PausingPair(Recorder(), SETTINGS), [unhelpful, IN_PAUSE], 60)
    again = [False] * num  # the report that ends a pause is not checked
    expected = again[1:] + [True] * 5 + again + [True] * 10 + 3 * (again + [True] * 12)
    assert paused == expected[:60]


def test_few_judged_guesses_are_not_enough_to_pause() -> None:
    few = report(matched=3, late=3)
    paused = followed(PausingPair(Recorder(), SETTINGS), [few, IN_PAUSE], 7)
    assert paused.index(True) == 5, "the sixth report has seen sixteen"


def test_a_share_that_may_be_chance_is_checked_for_longer() -> None:
    unclear, clear = (
        report(matched=10, late=9),
        report(matched=40, late=38),
    )  # 1 and 2 helpful guesses, where 1 and 4 are doubtful
    assert followed(PausingPair(Recorder(), SETTINGS), [unclear, IN_PAUSE], 7).index(True) == 5
    assert followed(PausingPair(Recorder(), SETTINGS), [clear, IN_PAUSE], 7).index(True) == 3


def test_discarded_guesses_do_not_count_against_a_deep_window() -> None:
    deep = report(matched=4, late=0, mismatched=4, discarded=500)
    assert not any(followed(PausingPair(Recorder(), SETTINGS), [deep, IN_PAUSE], 100))


def test_a_pause_that_makes_tokens_slower_ends_at_once_and_checks_become_rarer() -> None:
    paused = followed(PausingPair(Recorder(), SETTINGS), [HARDLY, SLOWER], 60)
    cycle = [True] * 4  # one report settles, three are compared
    expected = [False] * 3 + cycle + [False] * (6 + 4) + cycle + 3 * ([False] * (12 + 4) + cycle)
    assert paused == expected[:60]


def test_a_pause_after_guesses_that_can_not_have_helped_is_never_a_mistake() -> None:
    paused = followed(PausingPair(Recorder(), SETTINGS), [LATE, SLOWER], 8)
    assert paused == [False] * 3 + [True] * 5


def test_a_pair_that_waits_for_its_first_verdict_is_not_checked() -> None:
    waiting = [changed(NOTHING, tpot_ms=0.0)] * 50 + [NOTHING] * 50  # a token was written long ago, none since
    pair = PausingPair(Recorder(), SETTINGS)
    assert not any(pair.decide(seen) == PAUSED for seen in waiting)


def test_a_pair_whose_window_a_wrapper_cuts_to_0_is_not_checked() -> None:
    assert not any(is_paused(PausingPair(Recorder(), SETTINGS), [IN_PAUSE] * 50))


def test_a_pause_that_was_right_makes_checks_as_frequent_as_at_first() -> None:
    pair = PausingPair(Recorder(), SETTINGS)
    followed(pair, [HARDLY, SLOWER], 40)  # the next mistake would be followed by twelve reports without checks
    followed(pair, [LATE, IN_PAUSE], 60)
    paused = followed(pair, [HARDLY, SLOWER], 60)
    ends = [number for number in range(1, 60) if paused[number - 1] and not paused[number]]
    assert ends[2] - ends[1] == 6 + 4 + 4, "six reports without checks, a check of four, a pause of four"


def test_reports_of_a_pause_with_the_old_window_in_force_are_not_compared() -> None:
    old = changed(SLOWER, window=8)
    assert followed(PausingPair(Recorder(), SETTINGS), [HARDLY, old], 9) == [False] * 3 + [True] * 5 + [False]


def test_a_pause_is_suspended_while_half_as_many_sessions_share_the_drafter() -> None:
    pair, few = PausingPair(Recorder(), SETTINGS), changed(HELPFUL, num_sessions=4)
    assert is_paused(pair, [LATE] * 4)[-1]
    assert is_paused(pair, [changed(IN_PAUSE, num_sessions=5)]) == [True]
    assert is_paused(pair, [changed(IN_PAUSE, num_sessions=4)]) == [True]
    assert not any(is_paused(pair, [few] * 50))
    assert is_paused(pair, [IN_PAUSE] * 4) == [True] * 3 + [False], "one report of five was made before"


def test_a_moment_of_few_sessions_between_many_ends_no_pause() -> None:
    pair, few = PausingPair(Recorder(), replace(SETTINGS, first=12)), changed(IN_PAUSE, num_sessions=1)
    assert is_paused(pair, [LATE] * 4)[-1]
    assert all(is_paused(pair, [IN_PAUSE, few] * 11)), "each of the few is the first one again"


def test_few_sessions_with_unhelpful_guesses_pause_too() -> None:
    pair = PausingPair(Recorder(), SETTINGS)
    is_paused(pair, [LATE] * 4)
    few = changed(LATE, num_sessions=3)
    assert is_paused(pair, [few]) == [True]
    assert is_paused(pair, [few] * 4) == [False] * 3 + [True]


def test_guesses_of_an_outpaced_drafter_must_help_more_and_need_a_shorter_check() -> None:
    some = report(matched=40, late=30)  # a quarter helps
    outpaced, fast = changed(some, pass_ms=40.0), changed(some, pass_ms=70.0)
    assert is_paused(PausingPair(Recorder(), SETTINGS), [outpaced] * 2) == [False, True]
    assert not any(is_paused(PausingPair(Recorder(), SETTINGS), [fast] * 40))


def test_fewer_judged_guesses_are_enough_where_the_target_outpaces_the_drafter() -> None:
    few = report(matched=4, late=4)
    outpaced, fast = changed(few, pass_ms=40.0), changed(few, pass_ms=70.0)
    assert followed(PausingPair(Recorder(), SETTINGS), [outpaced, IN_PAUSE], 7).index(True) == 2, (
        "the third has seen 12"
    )
    assert followed(PausingPair(Recorder(), SETTINGS), [fast, IN_PAUSE], 7).index(True) == 3, "the fourth has seen 16"


def test_an_outpaced_drafter_that_never_guesses_is_not_checked_for_longer() -> None:
    outpaced, fast = changed(NOTHING, pass_ms=40.0), changed(NOTHING, pass_ms=70.0)
    assert followed(PausingPair(Recorder(), SETTINGS), [outpaced, IN_PAUSE], 7).index(True) == 3, "a check of four"
    assert followed(PausingPair(Recorder(), SETTINGS), [fast, IN_PAUSE], 7).index(True) == 5, "the longest, of six"


def test_by_default_most_guesses_of_an_outpaced_drafter_must_help_within_four_reports() -> None:
    all_helpful, two_thirds = (changed(report(matched=12, late=late), pass_ms=40.0) for late in (0, 4))
    pair = PausingPair(Recorder(), PauseSettings())
    assert not any(is_paused(pair, [all_helpful] * 4))
    assert is_paused(pair, [two_thirds] * 4) == [False] * 3 + [True], "the check before was over"


def test_a_pause_that_costs_a_lot_ends_before_all_reports_are_compared() -> None:
    pair = PausingPair(Recorder(), replace(SETTINGS, first=12, compared=8))
    much_slower = changed(IN_PAUSE, tpot_ms=70.0)  # more than twice as long: seen in three reports behind the first
    assert followed(pair, [HARDLY, much_slower], 8) == [False] * 3 + [True] * 4 + [False]


def test_one_odd_report_of_a_pause_does_not_make_it_a_mistake() -> None:
    pair = PausingPair(Recorder(), replace(SETTINGS, first=12, compared=8))
    is_paused(pair, [HARDLY] * 4)
    odd = changed(IN_PAUSE, tpot_ms=300.0)  # prompts were read
    assert all(is_paused(pair, [IN_PAUSE, odd, *[IN_PAUSE] * 8]))


def test_one_odd_report_of_a_pause_that_could_not_be_compared_does_not_end_it() -> None:
    pair = PausingPair(Recorder(), replace(SETTINGS, first=40, longest=80, compared=8))
    is_paused(pair, [HARDLY] * 4)
    others = [changed(IN_PAUSE, window=8)] * PATIENCE  # the window of before is in force
    assert all(is_paused(pair, [IN_PAUSE, changed(IN_PAUSE, tpot_ms=300.0), *others]))


def test_one_odd_report_of_a_check_does_not_hide_a_mistake() -> None:
    pair = PausingPair(Recorder(), SETTINGS)
    is_paused(pair, [HARDLY, changed(HARDLY, tpot_ms=300.0), HARDLY, HARDLY])
    assert is_paused(pair, [SLOWER] * 4) == [True, True, True, False]


def test_a_control_sees_nothing_of_a_pause() -> None:
    active = Recorder()
    is_paused(PausingPair(active, SETTINGS), [LATE] * 4 + [IN_PAUSE] * 4 + [HELPFUL])
    assert active.num_seen == 5


def test_after_helpful_guesses_the_next_pause_is_short_again() -> None:
    pair = PausingPair(Recorder(), SETTINGS)
    is_paused(pair, [LATE] * 4 + [IN_PAUSE] * 5 + [LATE] * 2)  # the next pause would be a long one
    assert not any(is_paused(pair, [HELPFUL] * 8))
    paused = followed(pair, [LATE, IN_PAUSE], 30)
    assert paused[paused.index(True) :].index(False) == 5


def test_a_pair_without_sessions_neither_begins_nor_ends_a_pause() -> None:
    pair = PausingPair(Recorder(), SETTINGS)
    assert not any(is_paused(pair, [IDLE] * 50))
    is_paused(pair, [LATE] * 4)
    assert all(is_paused(pair, [IDLE] * 50))


@pytest.mark.parametrize("name", ["ladder", "confidence", "adaptive"])
def test_adaptive_policies_pause_and_the_static_one_does_not(name: str) -> None:
    assert POLICIES[name](DEFAULT_CHOICE).for_pair().decide(LATE).window > 0
    pair, static = POLICIES[name](DEFAULT_CHOICE).for_pair(), POLICIES["static"](DEFAULT_CHOICE).for_pair()
    assert [pair.decide(written(LATE, number)) for number in range(20)][-1] == PAUSED
    assert [static.decide(LATE) for _ in range(20)][-1] == DEFAULT_CHOICE


@pytest.mark.parametrize(
    "wrong",
    [
        {"check": 0},
        {"check": 9, "longest_check": 8},
        {"doubtful_share": 1.0},
        {"outpaced_share": 0.01},
        {"outpaced_check": 0},
        {"outpaced_check": 9},
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
def test_settings_that_can_not_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        PauseSettings(**wrong)
