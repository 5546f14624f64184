"""Which drafter a session binds, when it repeats Speculate, and when it looks for another."""

from __future__ import annotations

from itertools import pairwise

import pytest

from services.gateway.session.outbox import Send
from shared.protocol.messages import (
    Close,
    FailureCode,
    Open,
    Speculate,
    Tally,
)
from tests.gateway.fleet.test_peers import beat
from tests.gateway.session.story import PROMPT, TIMING, Story, running, taken, two_of_each


def test_the_drafter_is_asked_after_the_verifier_has_opened() -> None:
    story = Story(two_of_each())
    (first,) = story.sends()
    assert isinstance(first.message, Open)
    assert (first.instance_id, first.message.term, first.message.drafter_id) == ("v1.1", 1, "d1.1")
    story.opened("v1.1")
    (second,) = story.sends()
    assert isinstance(second.message, Speculate)
    assert (second.instance_id, second.message.verifier_id, second.message.term) == ("d1.1", "v1.1", 1)
    story.opened("v1.1")
    assert story.sends() == [], "a repeated Opened says nothing new"


def test_without_a_drafter_the_verifier_runs_alone_and_one_that_comes_later_is_adopted() -> None:
    story = running([beat("v1.1")])
    assert story.session.drafter_id is None
    newcomer = beat("d9.1", service="drafter")
    story.now = 1.0
    story.placement.fleet.observe(newcomer, story.now)
    story.verdict("v1.1", PROMPT + 3, [4])
    (rebind,) = story.sends()
    assert isinstance(rebind.message, Open)
    assert (rebind.instance_id, rebind.message.drafter_id, rebind.message.term) == ("v1.1", "d9.1", 2)
    assert rebind.message.committed_ids == (1, 2, 3, 4)
    story.opened("v1.1")
    assert story.verbs() == ["speculate d9.1"]


def test_a_lost_drafter_is_replaced_at_the_same_verifier_with_a_new_term() -> None:
    story = running()
    story.session.on_gone("d1.1", story.now)
    closed, rebind = story.sends()
    assert closed == Send("drafter", "d1.1", Close(story.session.session_id, 1))
    assert isinstance(rebind.message, Open)
    assert (rebind.instance_id, rebind.message.drafter_id, rebind.message.term) == ("v1.1", "d2.1", 2)
    story.verdict("v1.1", PROMPT + 3, [4], term=1)
    assert taken(story.session) == [], "the old term is over from the moment of re-opening"
    story.opened("v1.1")
    story.wait(0.0)
    assert story.verbs() == ["speculate d2.1", "poll v1.1"], "what the old term had told is asked for at once"


@pytest.mark.parametrize("sign", ["absent", "failure"])
def test_a_drafter_that_refuses_or_is_absent_is_replaced_and_then_done_without(sign: str) -> None:
    story = running()
    for drafter in ("d1.1", "d2.1"):
        assert story.session.drafter_id == drafter
        if sign == "absent":
            story.session.on_absent("drafter", story.session.term, story.now)
        else:
            story.failure(drafter, "overloaded", retryable=True)
        if story.session.drafter_id:
            story.opened("v1.1")
    assert story.session.drafter_id is None
    story.verdict("v1.1", PROMPT + 3, [4])
    assert taken(story.session) == [4]


def test_a_drafter_that_fails_again_and_again_is_asked_less_and_less_whatever_it_joins() -> None:
    story = running([beat("v1.1"), beat("d1.1", service="drafter")])
    tried_at: list[float] = []
    for _ in range(400):
        story.wait(0.25)
        story.session.on_joined("d1.1", story.now)
        story.verdict("v1.1", PROMPT + 3, [])
        if any(isinstance(send.message, Open) for send in story.sends()):
            tried_at.append(story.now)
            story.opened("v1.1")
        if story.session.drafter_id:
            story.failure("d1.1", "internal", retryable=True)
    pauses = [later - sooner for sooner, later in pairwise(tried_at)]
    assert len(pauses) >= 3
    assert all(later >= 1.5 * sooner for sooner, later in pairwise(pauses))


def test_a_drafter_whose_heartbeats_stopped_is_asked_again_when_it_joins() -> None:
    story = running([beat("v1.1"), beat("d1.1", service="drafter")])
    story.session.on_gone("d1.1", story.now)
    assert story.session.drafter_id is None
    story.session.on_joined("d1.1", story.now)
    story.wait(TIMING.adopt_s)
    story.verdict("v1.1", PROMPT + 3, [4])
    assert story.session.drafter_id == "d1.1"


@pytest.mark.parametrize("code", ["internal", "overloaded", "draining", "closed"])
def test_a_drafter_that_fails_in_mid_answer_is_replaced_at_once_and_then_done_without(code: FailureCode) -> None:
    story = running()
    for number in range(5):
        story.wait(0.2)
        story.verdict("v1.1", PROMPT + 3 + number, [7])
    story.failure("d1.1", code, retryable=True)
    closed, rebind = story.sends()
    assert closed == Send("drafter", "d1.1", Close(story.session.session_id, 1))
    assert isinstance(rebind.message, Open)
    assert (rebind.instance_id, rebind.message.drafter_id, rebind.message.term) == ("v1.1", "d2.1", 2)
    assert rebind.message.committed_ids == (1, 2, 3, 7, 7, 7, 7, 7)
    story.opened("v1.1")
    assert story.verbs() == ["speculate d2.1"]
    story.failure("d2.1", code, retryable=True)
    assert (story.session.drafter_id, story.verbs()) == (None, ["close d2.1"])
    story.verdict("v1.1", PROMPT + 8, [8])
    assert taken(story.session)[-1] == 8, "the verifier goes on alone"


def test_a_lost_speculate_is_repeated_and_then_another_drafter_is_tried() -> None:
    story = Story(two_of_each())
    story.opened("v1.1")
    story.sends()
    said = []
    for number in range(200):
        story.wait(0.1)
        story.verdict("v1.1", PROMPT, [0] * min(number, 5), drafted=False)
        said += [verb for verb in story.verbs() if not verb.startswith("poll")]
        if story.session.drafter_id == "d2.1":
            break
    assert said == ["speculate d1.1"] * (TIMING.num_speculates - 1) + ["close d1.1", "open v1.1"]


def test_a_drafter_that_is_heard_is_not_reminded() -> None:
    story = running()
    for number in range(30):
        story.wait(0.4)
        story.verdict("v1.1", PROMPT + 3 + number, [7])
    assert story.verbs() == []


def test_guesses_that_a_replaced_drafter_left_behind_count_for_nobody() -> None:
    story = Story(two_of_each())
    story.opened("v1.1")
    first = story.session.drafter_id
    story.verdict("v1.1", PROMPT, [1], tally=Tally(num_passes=1, accepted=3))
    story.session.on_gone(str(first), story.now)
    story.opened("v1.1")
    second = story.session.drafter_id
    story.verdict("v1.1", PROMPT + 1, [2], tally=Tally(num_passes=2, accepted=3, discarded=64))
    story.verdict("v1.1", PROMPT + 2, [3], tally=Tally(num_passes=3, accepted=5, discarded=64))
    rates = [story.placement.guesses.quality(str(each), story.now).per_s for each in (first, second)]
    assert rates == pytest.approx([3.0, 2.0], rel=0.1)
