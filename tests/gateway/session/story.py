"""A session in virtual time, and what its peers say to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.session.outbox import Send
from services.gateway.session.session import Session
from services.gateway.session.timeouts import SessionTiming
from shared.protocol.messages import (
    Echo,
    Failure,
    FailureCode,
    Finish,
    Heartbeat,
    Load,
    Opened,
    Tally,
    TokenIds,
    TokenLogprobs,
    Verdict,
)
from shared.protocol.subjects import VERBS
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
        found = []
        while send := self.session.next_send:
            found.append(send)
            self.session.mark_sent()
        return found

    def verbs(self) -> list[str]:
        return [f"{VERBS[type(send.message)]} {send.instance_id}" for send in self.sends()]

    def keep_alive(self, *instance_ids: str) -> None:
        """Heartbeats of these instances now."""
        for each in self.beats:
            if each.instance_id in instance_ids:
                self.placement.fleet.observe(each, self.now)

    def opened(self, by: str, fingerprint: str = "cpu", *, has_room: bool = True) -> None:
        answer = Opened(self.session.session_id, self.session.term, 30.0, Load(), fingerprint, has_room)
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
        tally: Tally | None = None,
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
            tally or Tally(num_passes=1),
            [TokenLogprobs(0.0, TokenIds(), [])] * len(ids) if wanted else None,
        )
        self.session.on_verdict(by, said, self.now)

    def failure(self, by: str, code: FailureCode, *, retryable: bool) -> None:
        self.session.on_failure(
            by, Failure(self.session.session_id, self.session.term, code, "no", retryable), self.now
        )

    def wait(self, seconds: float) -> None:
        """Lets time pass. Calls the timer whenever it is due; all instances send heartbeats."""
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
    """The new tokens of the session."""
    return [each.token_id for each in session.take_tokens()]
