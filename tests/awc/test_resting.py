"""Rests: drafting in vain is given up for a while, tried again, and taken up where it is of use."""

from __future__ import annotations

import pytest

from awc.policies import POLICIES
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.resting import RESTING, RestingPair, Rests
from shared.messages import PairReport

RESTS = Rests(look=4, least_share=0.1, first=5, longest=12)


class Recorder:
    """A control that counts what it sees."""

    def __init__(self) -> None:
        self.num_seen = 0

    def decide(self, seen: PairReport) -> WindowChoice:
        self.num_seen += 1
        return DEFAULT_CHOICE


def report(drafted: int, matched: int = 0, late: int = 0, num_sessions: int = 8) -> PairReport:
    return PairReport(
        verifier_id="cloud.0123456789ab",
        num_sessions=num_sessions,
        window=8,
        drafted=drafted,
        matched=matched,
        mismatched=0,
        late=late,
        discarded=0,
        draft_ms=7.0,
        rtt_ms=30.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
    )


USEFUL = report(drafted=20, matched=12, late=4)
LATE = report(drafted=20, matched=20, late=20)
NOTHING = report(drafted=0)


def is_resting(pair: RestingPair, reports: list[PairReport]) -> list[bool]:
    return [pair.decide(each) == RESTING for each in reports]


def test_a_pair_whose_guesses_are_of_use_never_rests() -> None:
    assert not any(is_resting(RestingPair(Recorder(), RESTS), [USEFUL] * 100))


@pytest.mark.parametrize("in_vain", [LATE, NOTHING])
def test_drafting_in_vain_is_given_up_and_tried_again_after_rests_twice_as_long(in_vain: PairReport) -> None:
    rests = is_resting(RestingPair(Recorder(), RESTS), [in_vain] * 51)
    drafting = [False] * 3
    assert rests == drafting + [True] * 5 + drafting + [True] * 10 + 2 * (drafting + [True] * 12)


def test_a_control_sees_nothing_of_a_rest() -> None:
    active = Recorder()
    is_resting(RestingPair(active, RESTS), [LATE] * 4 + [NOTHING] * 4 + [USEFUL])
    assert active.num_seen == 5


def test_after_guesses_that_were_of_use_the_next_rest_is_a_short_one_again() -> None:
    pair = RestingPair(Recorder(), RESTS)
    is_resting(pair, [LATE] * 4 + [NOTHING] * 5 + [LATE] * 2)  # looked at three times: the next rest would be long
    assert not any(is_resting(pair, [USEFUL] * 8))
    rests = is_resting(pair, [LATE] * 30)
    assert rests[: rests.index(True)].count(False) <= 4
    assert rests[rests.index(True) :].index(False) == 5


def test_a_pair_without_sessions_neither_begins_nor_ends_a_rest() -> None:
    idle = report(drafted=0, num_sessions=0)
    pair = RestingPair(Recorder(), RESTS)
    assert not any(is_resting(pair, [idle] * 50))
    is_resting(pair, [LATE] * 4)
    assert all(is_resting(pair, [idle] * 50))


@pytest.mark.parametrize("name", ["ladder", "confidence"])
def test_adaptive_policies_rest_and_the_static_one_does_not(name: str) -> None:
    assert POLICIES[name](DEFAULT_CHOICE).for_pair().decide(LATE).window > 0
    pair, static = POLICIES[name](DEFAULT_CHOICE).for_pair(), POLICIES["static"](DEFAULT_CHOICE).for_pair()
    assert [pair.decide(LATE) for _ in range(20)][-1] == RESTING
    assert [static.decide(LATE) for _ in range(20)][-1] == DEFAULT_CHOICE


@pytest.mark.parametrize("wrong", [{"look": 0}, {"least_share": 1.0}, {"first": 9, "longest": 8}, {"first": 0}])
def test_rests_that_can_not_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rests(**wrong)
