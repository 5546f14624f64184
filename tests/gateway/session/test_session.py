"""The session's state machine in virtual time: which verifier is asked what, and when the session moves."""

from __future__ import annotations

from itertools import pairwise

import pytest

from services.gateway.session.outbox import Send
from shared.protocol.messages import (
    Close,
    FailureCode,
    Heartbeat,
    Load,
    Open,
    Opened,
    Poll,
)
from tests.gateway.fleet.test_peers import beat, generation
from tests.gateway.session.story import PROMPT, TIMING, Story, running, taken, two_of_each


def test_an_unanswered_open_is_repeated_and_then_goes_elsewhere() -> None:
    story = Story(two_of_each())
    story.wait(TIMING.open_timeout_s * TIMING.num_opens - 0.1)
    assert story.verbs() == ["open v1.1"] * TIMING.num_opens
    story.wait(0.2)
    assert story.verbs() == ["close v1.1", "open v2.1"]
    assert story.session.term == 2


@pytest.mark.parametrize("lease_s", [1e-9, 1e6])
@pytest.mark.parametrize("load", [Load(), Load(*[1 << 48] * 7, 1e15, 1e15, 1e15)])
def test_what_a_verifier_tells_of_lease_and_load_as_it_opens_changes_nothing(lease_s: float, load: Load) -> None:
    told, usual = Story(two_of_each()), Story(two_of_each())
    said = Opened(told.session.session_id, told.session.term, lease_s, load, "cpu")
    told.session.on_opened("v1.1", said, told.now)
    usual.opened("v1.1")
    for _ in range(100):  # until it is left for its silence, and later
        for story in (told, usual):
            story.wait(0.1)
        assert told.sends() == usual.sends()
        assert (told.session.due, told.session.phase) == (usual.session.due, usual.session.phase)
        assert told.placement.verifier(generation(), told.now) == usual.placement.verifier(generation(), usual.now)
    assert told.session.term == usual.session.term > 1


def test_a_verdict_opens_the_session_when_opened_was_lost() -> None:
    story = Story(two_of_each())
    story.verdict("v1.1", PROMPT, [1])
    assert story.session.was_opened
    assert taken(story.session) == [1]
    assert story.session.fingerprints == ["cpu"], "as its heartbeat tells"


def test_silence_is_polled_and_an_answer_keeps_the_verifier() -> None:
    story = running()
    for _ in range(20):
        story.wait(0.6)
        story.verdict("v1.1", PROMPT + 3, [])
    assert set(story.verbs()) == {"poll v1.1"}
    assert story.session.term == 1


def test_a_silent_verifier_is_left_for_another_with_all_that_is_fixed() -> None:
    story = running()
    story.wait(5.0)
    sends = story.sends()
    polls = [send for send in sends if isinstance(send.message, Poll)]
    assert len(polls) == TIMING.poll.max_polls
    moved = sends[len(polls) + 1]
    assert sends[len(polls)] == Send("verifier", "v1.1", Close(story.session.session_id, 1))
    assert isinstance(moved.message, Open)
    assert (moved.instance_id, moved.message.term, moved.message.drafter_id) == ("v2.1", 2, "d1.1")
    assert moved.message.committed_ids == (1, 2, 3)
    assert story.session.num_failovers == 1


def test_a_session_keeps_the_numerics_that_worked_on_it_in_order_and_prefers_the_first() -> None:
    story = Story([beat("a.0", fingerprint="a")])
    story.opened("a.0", "a")
    told = [list(story.session.fingerprints)]
    for number, (others, preferred) in enumerate([("b", "b"), ("abc", "a"), ("bc", "b")], 1):
        at = str(story.session.verifier_id)
        story.verdict(at, PROMPT + number - 1, [number])
        story.now = 100.0 * number  # those before are forgotten
        for name in others:
            load = Load(num_sessions=9 if name == preferred else 0)
            story.placement.fleet.observe(beat(f"{name}.{number}", fingerprint=name, load=load), story.now)
        story.session.on_gone(at, story.now)
        assert story.session.verifier_id == f"{preferred}.{number}"
        story.opened(f"{preferred}.{number}", preferred)
        told.append(list(story.session.fingerprints))
    assert told == [["a"], ["a"], ["a", "b"], ["a", "b"]], "named where tokens of it have come"


def test_a_verifier_that_changes_its_numerics_with_every_token_is_remembered_by_one() -> None:
    story = Story([beat("v1.1")])
    for number in range(40):
        story.opened("v1.1", f"numerics {number}")
        story.verdict("v1.1", PROMPT + number, [number])
    assert story.session.fingerprints == ["numerics 0"]


def test_a_stale_heartbeat_moves_the_session_at_once() -> None:
    story = running()
    story.session.on_gone("v1.1", story.now)
    assert story.verbs() == ["close v1.1", "open v2.1"]


def test_absent_is_believed_when_repeated() -> None:
    story = running()
    story.wait(0.6)
    assert story.verbs() == ["poll v1.1"]
    story.session.on_absent("verifier", 1, story.now)
    story.session.on_absent("verifier", 1, story.now)
    assert story.verbs() == [], "one Poll, one hint"
    story.wait(TIMING.absent_pause_s)
    assert story.verbs() == ["poll v1.1"]
    story.session.on_absent("verifier", 1, story.now)
    assert story.verbs() == ["close v1.1", "open v2.1"]


def test_absent_of_an_older_term_is_not_believed() -> None:
    story = running()
    for _ in range(5):
        story.now += 1.0
        story.session.on_absent("verifier", 0, story.now)
    assert story.session.term == 1


def test_a_verifier_that_lost_the_session_gets_it_again_at_once() -> None:
    story = running([beat("v1.1")])
    story.failure("v1.1", "unknown_session", retryable=True)
    (again,) = story.sends()
    assert isinstance(again.message, Open)
    assert (again.instance_id, again.message.term, again.message.committed_ids) == ("v1.1", 2, (1, 2, 3))


def test_where_no_other_verifier_is_the_session_waits_for_it_to_come_back() -> None:
    story = running([beat("v1.1")])
    story.placement.fleet.expire(10.0)
    story.beats = []
    story.now = 10.0
    story.session.on_gone("v1.1", story.now)
    assert story.session.phase == "waiting"
    assert story.verbs() == [], "it is not told to close what it may still have"
    story.wait(5.0)
    assert story.session.phase == "waiting"
    newcomer = beat("v1.2")
    story.placement.fleet.observe(newcomer, story.now)
    story.beats = [newcomer]
    story.session.on_joined("v1.2", story.now)
    story.wait(TIMING.avoid_s)
    assert story.verbs()[:2] == ["close v1.1", "open v1.2"]


def test_after_an_outage_of_the_bus_a_session_goes_on_where_it_was_whoever_comes_back_first() -> None:
    story = running()
    story.placement.fleet.expire(10.0)
    story.now = 10.0
    for peer in ("d1.1", "v1.1"):
        story.session.on_gone(peer, story.now)
    assert story.session.phase == "waiting"
    story.sends()
    story.now += 0.2
    for peer in ("v2.1", "d1.1", "v1.1"):
        story.keep_alive(peer)
        story.session.on_joined(peer, story.now)
    (again,) = story.sends()
    assert isinstance(again.message, Open)
    assert (again.instance_id, again.message.drafter_id, again.message.term) == ("v1.1", "d1.1", 2)


def test_a_verifier_that_was_given_up_but_speaks_again_is_followed_again() -> None:
    story = running([beat("v1.1")])
    story.session.on_gone("v1.1", story.now)
    assert story.session.phase == "waiting"
    story.verdict("v1.1", PROMPT + 3, [4])
    assert taken(story.session) == [4]
    assert story.session.phase == "running"


def test_a_session_without_any_verifier_fails_in_time() -> None:
    story = running([beat("v1.1")])
    story.beats = []
    story.session.on_gone("v1.1", story.now)
    story.wait(TIMING.session_timeout_s + 1)
    assert story.session.failure is not None
    assert story.session.failure.code == "overloaded"


def test_a_verifier_that_opens_and_never_brings_a_token_is_not_tried_for_ever() -> None:
    story = Story([beat("v1.1")])
    for _ in range(100):
        story.opened("v1.1")
        story.failure("v1.1", "internal", retryable=True)
        story.wait(TIMING.avoid_s)
        if story.session.failure:
            break
    assert story.session.failure is not None
    assert story.session.failure.code == "internal"


def test_a_refused_session_goes_to_the_next_verifier_and_fails_when_all_refuse() -> None:
    story = Story(two_of_each())
    story.failure("v1.1", "internal", retryable=True)
    assert story.session.verifier_id == "v2.1"
    story.failure("v2.1", "internal", retryable=True)
    assert story.session.failure is not None
    assert story.session.failure.code == "internal"


@pytest.mark.parametrize("code", ["overloaded", "draining"])
def test_a_session_that_no_verifier_has_room_for_tries_one_after_the_other_until_one_has(code: FailureCode) -> None:
    story = Story(two_of_each())
    asked: list[str] = []
    for _ in range(12):
        story.sends()
        assert story.session.verifier_id is not None
        asked.append(story.session.verifier_id)
        story.failure(asked[-1], code, retryable=True)
        assert story.session.failure is None
        if story.session.phase == "waiting":
            assert story.verbs() == [], "nobody is asked again at once"
            story.wait(TIMING.avoid_s)
    assert set(asked[0::2]) | set(asked[1::2]) == {"v1.1", "v2.1"}
    assert all(first != second for first, second in zip(asked[0::2], asked[1::2], strict=True))
    story.opened(story.session.verifier_id or "")
    assert story.session.phase == "running"


def test_full_verifiers_are_waited_for_beyond_the_session_s_timeout_and_draining_ones_are_not() -> None:
    failures = {}
    for code in ("overloaded", "draining"):
        story = Story([beat("v1.1")])
        while story.now < 2 * TIMING.session_timeout_s and story.session.failure is None:
            story.failure("v1.1", code, retryable=True)
            story.wait(TIMING.avoid_s)
        failures[code] = story.session.failure
    assert failures["overloaded"] is None
    assert failures["draining"] is not None
    assert failures["draining"].code == "overloaded"


def test_a_session_refused_by_the_last_verifier_before_it_drains_waits_for_another() -> None:
    story = Story([beat("v1.1")])
    story.failure("v1.1", "draining", retryable=True)
    story.beats = [beat("v1.1", draining=True)]
    story.wait(3 * TIMING.avoid_s)
    assert (story.session.phase, story.session.failure) == ("waiting", None)
    story.beats = [beat("v2.1")]
    story.placement.fleet.observe(story.beats[0], story.now)
    story.wait(TIMING.avoid_s)
    assert story.session.verifier_id == "v2.1"


def test_a_final_refusal_is_told_as_it_is() -> None:
    story = Story(two_of_each())
    story.failure("v1.1", "too_long", retryable=False)
    assert story.session.failure is not None
    assert (story.session.failure.code, story.session.verifier_id) == ("too_long", "v1.1")


def test_a_running_session_moves_when_its_verifier_says_closed() -> None:
    story = running()
    story.failure("v1.1", "closed", retryable=False)
    assert story.session.verifier_id == "v2.1"


def test_a_contradicting_verifier_is_left() -> None:
    story = running()
    story.verdict("v1.1", PROMPT, [1, 99])
    assert story.session.num_conflicts == 1
    assert story.session.verifier_id == "v2.1"
    assert story.session.stream.tokens == [1, 2, 3]


@pytest.mark.parametrize("num_top", [None, 0])
def test_a_lost_verdict_is_asked_for_at_once_and_the_verifier_kept(num_top: int | None) -> None:
    story = Story([beat("v1.1")], {"num_top": num_top})
    story.opened("v1.1")
    story.sends()
    story.verdict("v1.1", PROMPT, [1])
    story.verdict("v1.1", PROMPT + 2, [3])
    story.wait(0.0)
    (asked,) = story.sends()
    assert asked.message == Poll(story.session.session_id, 1, PROMPT + 1)
    story.verdict("v1.1", PROMPT + 1, [2, 3])
    assert taken(story.session) == [1, 2, 3]
    assert (story.session.phase, story.session.num_conflicts) == ("running", 0)


def test_nobody_but_the_bound_peers_is_heard() -> None:
    story = running()
    story.verdict("v2.1", PROMPT + 3, [66])
    story.verdict("d1.1", PROMPT + 3, [66])
    story.failure("v2.1", "internal", retryable=False)
    assert taken(story.session) == []
    assert story.session.failure is None


def test_the_end_is_told_to_everybody_who_was_ever_bound() -> None:
    story = running()
    story.session.on_gone("v1.1", story.now)
    story.opened("v2.1")
    story.session.on_gone("d1.1", story.now)
    story.opened("v2.1")
    story.verdict("v2.1", PROMPT + 3, [4], finish="stop")
    assert (story.session.phase, story.session.due) == ("over", None)
    story.sends()
    story.session.close(story.now)
    assert sorted(story.verbs()) == ["close d1.1", "close d2.1", "close v1.1", "close v2.1"]


def test_the_finish_is_kept_whatever_comes_later() -> None:
    story = running()
    story.verdict("v1.1", PROMPT + 3, [4], finish="length")
    story.session.on_gone("v1.1", story.now)
    story.session.on_gone("d1.1", story.now)
    story.failure("v1.1", "internal", retryable=False)
    assert (story.session.phase, story.session.failure, story.sends()) == ("over", None, [])


def test_a_session_whose_timer_was_late_asks_its_verifier_before_it_fails() -> None:
    story = running()
    story.now += 2 * TIMING.session_timeout_s
    story.keep_alive("v1.1", "v2.1", "d1.1")
    story.session.on_timer(story.now)
    assert (story.verbs(), story.session.failure) == (["poll v1.1"], None)
    for _ in range(3):
        story.now += TIMING.session_timeout_s / 3
        story.session.on_timer(story.now)
    assert story.session.failure is not None, "no answer to the first question"


def test_an_answer_ends_the_timeout_and_the_next_question_begins_it_anew() -> None:
    story = running([beat("v1.1")])
    for _ in range(3):
        story.wait(0.6)
        assert story.verbs() == ["poll v1.1"]
        story.verdict("v1.1", PROMPT + 3, [])
        story.now += 0.9 * TIMING.session_timeout_s
        story.keep_alive("v1.1")
    story.session.on_timer(story.now)
    assert story.session.failure is None


@pytest.mark.parametrize("code", ["closed", "unknown_session"])
def test_a_refusal_ends_the_timeout_and_the_next_question_begins_it_anew(code: FailureCode) -> None:
    story = running()
    story.wait(0.6)
    story.now += 0.9 * TIMING.session_timeout_s
    story.keep_alive("v1.1", "v2.1", "d1.1")
    story.failure("v1.1", code, retryable=False)
    story.now += 0.9 * TIMING.session_timeout_s
    story.session.on_timer(story.now)
    assert story.session.failure is None
    story.now += TIMING.session_timeout_s
    story.session.on_timer(story.now)
    assert story.session.failure is not None


def full(instance_id: str, free_kv_tokens: int = 0, **changes: object) -> Heartbeat:
    return beat(instance_id, load=Load(free_kv_tokens=free_kv_tokens, kv_tokens=1024, **changes))


def answered_polls(story: Story, seconds: float) -> None:
    """Lets time pass; the session's verifier answers every Poll, and has no token yet."""
    for _ in range(round(seconds / 0.1)):
        story.wait(0.1)
        for send in story.sends():
            if isinstance(send.message, Poll):
                story.verdict(send.instance_id, send.message.base, [])


def test_a_session_that_waits_for_kv_cache_moves_when_another_verifier_has_room() -> None:
    story = Story([full("v1.1"), full("v2.1", num_sessions=5)])
    story.opened("v1.1", has_room=False)
    answered_polls(story, 5.0)
    assert (story.session.phase, story.session.verifier_id, story.session.term) == ("running", "v1.1", 1)
    story.beats = [full("v1.1"), full("v2.1", 128, num_sessions=5)]
    answered_polls(story, 1.0)
    assert (story.session.phase, story.session.verifier_id, story.session.term) == ("opening", "v2.1", 2)


@pytest.mark.parametrize("by", ["another Opened", "a token"])
def test_a_session_that_has_got_its_kv_cache_stays(by: str) -> None:
    story = Story([full("v1.1"), full("v2.1", num_sessions=5)])
    story.opened("v1.1", has_room=False)
    if by == "a token":
        story.verdict("v1.1", PROMPT, [1], drafted=False)
    else:
        story.opened("v1.1")
    story.beats = [full("v1.1"), full("v2.1", 128, num_sessions=5)]
    answered_polls(story, 5.0)
    assert (story.session.verifier_id, story.session.term) == ("v1.1", 1)


def test_a_session_that_finds_no_room_at_the_new_verifier_looks_on_less_often_and_is_not_ended() -> None:
    story = Story([full("v1.1"), full("v2.1", num_sessions=5)])
    moved_at = [0.0]
    for _ in range(2 * TIMING.max_idle_opens):
        at = str(story.session.verifier_id)
        story.opened(at, has_room=False)
        story.beats = [full("v1.1", 0 if at == "v1.1" else 128), full("v2.1", 0 if at == "v2.1" else 128)]
        while story.session.verifier_id == at:
            answered_polls(story, 0.5)
        moved_at.append(story.now)
    assert story.session.failure is None
    pauses = [later - sooner for sooner, later in pairwise(moved_at)]
    assert pauses[0] <= 1.0
    assert all(sooner < later or sooner >= 60.0 for sooner, later in pairwise(pauses))
    assert pauses[-1] <= 70.0


def test_a_session_that_loses_its_kv_cache_moves_when_another_verifier_has_room_for_its_text() -> None:
    story = Story([full("v1.1", 512), full("v2.1", num_sessions=5)], {"max_tokens": 900})
    story.opened("v1.1")
    story.verdict("v1.1", PROMPT, [*range(100)])
    story.opened("v1.1", has_room=False)
    story.beats = [full("v1.1"), full("v2.1", 320, num_sessions=5)]
    answered_polls(story, 5.0)
    assert (story.session.verifier_id, story.session.term) == ("v1.1", 1), "prompt and answer need 384"
    story.beats = [full("v1.1"), full("v2.1", 384, num_sessions=5)]
    story.wait(2.0)
    moved = next(send for send in story.sends() if isinstance(send.message, Open) and send.message.term == 2)
    assert (moved.instance_id, moved.message.term) == ("v2.1", 2)
    assert moved.message.committed_ids == tuple(range(100))


def test_a_running_session_moves_at_once_when_its_verifier_leaves() -> None:
    story = running()
    story.failure("v1.1", "draining", retryable=True)
    assert story.verbs() == ["close v1.1", "open v2.1"]
