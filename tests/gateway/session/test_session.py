"""The session's state machine in virtual time: who is asked what, and when it goes elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from services.gateway.session.session import Send, Session
from services.gateway.session.timeouts import SessionTiming
from shared.protocol.messages import (
    Close,
    Echo,
    Failure,
    FailureCode,
    Finish,
    Heartbeat,
    Load,
    Open,
    Opened,
    Poll,
    Speculate,
    Tally,
    TokenIds,
    TokenLogprobs,
    Verdict,
)
from tests.gateway.fleet.test_peers import beat, generation, placement

TIMING = SessionTiming()
PROMPT = 10


@dataclass
class Story:
    """A session and its clock."""

    beats: list[Heartbeat]
    changes: dict[str, object] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.placement = placement(*self.beats)
        self.session = Session.started(generation(PROMPT, **self.changes), self.placement, TIMING, self.now)

    def sends(self) -> list[Send]:
        return self.session.take_sends()

    def verbs(self) -> list[str]:
        return [f"{send.verb} {send.instance_id}" for send in self.sends()]

    def keep_alive(self, *instance_ids: str) -> None:
        """Heartbeats of these, as of now."""
        for each in self.beats:
            if each.instance_id in instance_ids:
                self.placement.fleet.observe(each, self.now)

    def opened(self, by: str, fingerprint: str = "cpu") -> None:
        answer = Opened(self.session.session_id, self.session.term, 30.0, Load(), fingerprint)
        self.session.on_opened(by, answer, self.now)

    def verdict(
        self,
        by: str,
        base: int,
        ids: list[int],
        *,
        term: int | None = None,
        finish: Finish | None = None,
        drafted: bool = True,
    ) -> None:
        echo = Echo(0.0, 0.0) if drafted else None
        term = self.session.term if term is None else term
        wanted = self.session.generation.num_top is not None
        said = Verdict(
            self.session.session_id,
            term,
            0,
            base,
            TokenIds(ids),
            0,
            finish,
            echo,
            0.0,
            1,
            0.0,
            Tally(num_passes=1),
            [TokenLogprobs(0.0, TokenIds(), [])] * len(ids) if wanted else None,
        )
        self.session.on_verdict(by, said, self.now)

    def failure(self, by: str, code: FailureCode, *, retryable: bool) -> None:
        self.session.on_failure(
            by, Failure(self.session.session_id, self.session.term, code, "no", retryable), self.now
        )

    def wait(self, seconds: float) -> None:
        """Lets time pass; the timer rings whenever it is due. Everybody's heart beats."""
        end = self.now + seconds
        while (due := self.session.due) is not None and due <= end:
            self.now = max(self.now, due)
            self.keep_alive(*(each.instance_id for each in self.beats))
            self.session.on_timer(self.now)
        self.now = end
        self.keep_alive(*(each.instance_id for each in self.beats))


def two_of_each() -> list[Heartbeat]:
    return [
        beat("v1.1"),
        beat("v2.1", load=Load(num_sessions=5)),
        beat("d1.1", service="drafter"),
        beat("d2.1", service="drafter", load=Load(num_sessions=5)),
    ]


def running(beats: list[Heartbeat] | None = None) -> Story:
    story = Story(beats or two_of_each())
    story.opened("v1.1")
    story.verdict("v1.1", PROMPT, [1, 2, 3])
    story.sends()
    story.session.take_tokens()
    return story


def taken(session: Session) -> list[int]:
    """The tokens that the session hands on now."""
    return [each.token_id for each in session.take_tokens()]


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


def test_an_unanswered_open_is_repeated_and_then_goes_elsewhere() -> None:
    story = Story(two_of_each())
    story.wait(TIMING.open_timeout_s * TIMING.num_opens - 0.1)
    assert story.verbs() == ["open v1.1"] * TIMING.num_opens
    story.wait(0.2)
    assert story.verbs() == ["close v1.1", "open v2.1"]
    assert story.session.term == 2


def test_a_verdict_opens_the_session_when_opened_was_lost() -> None:
    story = Story(two_of_each())
    story.verdict("v1.1", PROMPT, [1])
    assert story.session.was_opened
    assert taken(story.session) == [1]
    assert story.session.fingerprints == ["cpu"], "as its heartbeat tells"


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
    assert closed == Send("drafter", "d1.1", "close", Close(story.session.session_id, 1))
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


@pytest.mark.parametrize("code", ["internal", "overloaded", "draining", "closed"])
def test_a_drafter_that_fails_in_mid_answer_is_replaced_at_once_and_then_done_without(code: FailureCode) -> None:
    story = running()
    for number in range(5):
        story.wait(0.2)
        story.verdict("v1.1", PROMPT + 3 + number, [7])
    story.failure("d1.1", code, retryable=True)
    closed, rebind = story.sends()
    assert closed == Send("drafter", "d1.1", "close", Close(story.session.session_id, 1))
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
    assert sends[len(polls)] == Send("verifier", "v1.1", "close", Close(story.session.session_id, 1))
    assert isinstance(moved.message, Open)
    assert (moved.instance_id, moved.message.term, moved.message.drafter_id) == ("v2.1", 2, "d1.1")
    assert moved.message.committed_ids == (1, 2, 3)
    assert story.session.incidents.failovers == 1


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
    assert story.session.incidents.conflicts == 1
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
    assert (story.session.phase, story.session.incidents.conflicts) == ("running", 0)


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


def test_a_session_counts_as_load_where_it_is_and_nowhere_else() -> None:
    story = running(two_of_each())

    def loads() -> dict[str, int]:
        fleet = story.placement.fleet
        choices = (*fleet.choices("verifier", "m", story.now), *fleet.choices("drafter", "m", story.now))
        return {choice.instance_id: choice.num_since for choice in choices if choice.num_since}

    assert loads() == {"v1.1": 1, "d1.1": 1}
    story.failure("d1.1", "overloaded", retryable=True)
    assert loads() == {"v1.1": 1, "d2.1": 1}
    story.failure("d2.1", "overloaded", retryable=True)
    assert loads() == {"v1.1": 1}
    story.failure("v1.1", "unknown_session", retryable=False)
    assert loads() == {"v1.1": 1}, "the same one again"
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    assert (story.session.phase, loads()) == ("waiting", {})
    story.opened("v2.1")
    assert (story.session.phase, loads()) == ("running", {"v2.1": 1})
    story.session.close(story.now)
    story.session.close(story.now)
    assert loads() == {}


def test_a_finished_session_is_no_load_of_its_drafter_and_one_of_its_verifier_until_it_is_closed() -> None:
    story = running()
    story.verdict("v1.1", PROMPT + 3, [4], finish="stop")
    fleet = story.placement.fleet
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [0, 0]
    assert [each.num_since for each in fleet.choices("verifier", "m", story.now)] == [1, 0]
    story.session.close(story.now)
    assert [each.num_since for each in fleet.choices("verifier", "m", story.now)] == [0, 0]


def test_a_session_counts_at_its_drafter_until_that_is_told_and_its_heartbeats_can_say_so() -> None:
    story = Story(two_of_each())
    fleet = story.placement.fleet

    def loads() -> list[int]:
        choices = (*fleet.choices("verifier", "m", story.now), *fleet.choices("drafter", "m", story.now))
        return [choice.num_since for choice in choices]

    story.wait(1.0)
    assert loads() == [0, 0, 1, 0], "the verifier has been told, and says so by itself"
    story.opened("v1.1")
    assert loads() == [0, 0, 1, 0]
    story.wait(1.0)
    assert loads() == [0, 0, 0, 0], "now the drafter has, too"
    story.session.close(story.now)
    assert loads() == [-1, 0, -1, 0]
    story.wait(1.0)
    assert loads() == [0, 0, 0, 0]


def test_a_session_that_waits_counts_at_the_drafter_that_has_it_and_once_when_it_goes_on() -> None:
    story = running()
    fleet = story.placement.fleet
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    assert story.session.phase == "waiting"
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [1, 0]
    story.wait(10.0)
    assert (story.session.phase, story.session.drafter_id) == ("opening", "d1.1")
    assert [each.num_since for each in fleet.choices("drafter", "m", story.now)] == [0, 0], "its heartbeats tell it"


def test_a_verifier_that_took_a_session_late_tells_of_it_by_itself() -> None:
    story = running()
    for each in ("v1.1", "v2.1"):
        story.failure(each, "overloaded", retryable=True)
    story.opened("v2.1")
    assert story.session.phase == "running"
    story.wait(1.0)
    choices = story.placement.fleet.choices("verifier", "m", story.now)
    assert [choice.num_since for choice in choices] == [0, 0]


def test_a_session_that_ends_before_its_drafter_heard_of_it_leaves_nothing_there() -> None:
    story = Story(two_of_each())
    story.session.close(story.now)
    story.wait(1.0)
    choices = story.placement.fleet.choices("drafter", "m", story.now)
    assert [choice.num_since for choice in choices] == [0, 0]


def test_the_finish_is_kept_whatever_comes_later() -> None:
    story = running()
    story.verdict("v1.1", PROMPT + 3, [4], finish="length")
    story.session.on_gone("v1.1", story.now)
    story.session.on_gone("d1.1", story.now)
    story.failure("v1.1", "internal", retryable=False)
    assert (story.session.phase, story.session.failure, story.sends()) == ("over", None, [])
