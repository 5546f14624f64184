"""What a gateway saw of one session, for the request inspector (docs/console.md).

Invariant: a journal holds times, counts and names, never a text, a token or a key. It holds at most MAX_VERDICTS
verdicts and MAX_STEPS other events; further ones are counted only. No I/O and no clock: every call gets `now` in
seconds.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.gateway.session.session import Session
from services.gateway.session.verdict_stream import TokenSource
from shared.protocol.messages import Close, Failure, Open, Opened, Poll, Service, Speculate, Tally, Verdict
from shared.protocol.subjects import instance_name

MAX_VERDICTS = 2048
MAX_STEPS = 256
OWN: tuple[TokenSource, ...] = ("target", "bonus", "recovered")
NO_WINDOW = NO_DRAFT = -1.0

# What the gateway said (open, speculate, poll, close) or heard (the others).
StepKind: TypeAlias = Literal["open", "speculate", "poll", "close", "opened", "waiting", "failure", "absent", "gone"]
SAID: dict[type[Open | Speculate | Poll | Close], StepKind] = {
    Open: "open",
    Speculate: "speculate",
    Poll: "poll",
    Close: "close",
}


@dataclass(frozen=True, slots=True)
class Step:
    """An event that is no verdict. instance: to or from whom. at_ms: since the request. detail: code of a failure."""

    at_ms: float
    kind: StepKind
    instance: str
    term: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VerdictEntry:
    """A verdict as the gateway heard it. num_new: tokens that it added, num_accepted of them guesses, the others `own`.

    tally: fates of the session's guesses at this verifier so far. pass_ms, batch, num_pass_tokens and queue: of the
    pass. held_ms: how long before the verdict its newest draft came; None: no newer one than at the verdict before.
    """

    at_ms: float
    term: int
    num_new: int
    num_accepted: int
    num_looked_up: int
    own: TokenSource
    tally: Tally
    pass_ms: float
    batch: int
    num_pass_tokens: int
    queue: float
    held_ms: float | None
    window: int | None


NUM_FIELDS = 16  # numbers of an entry, as `Journal.on_verdict` writes them


@dataclass(frozen=True, slots=True)
class Record:
    """A session that is over. asked_at: in Unix seconds. outcome: its finish, the code of its failure, or "cancelled"
    where its client left or its deadline passed."""

    session_id: str
    asked_at: float
    speculation: str
    num_prompt_tokens: int
    num_tokens: int
    outcome: str
    verifier: str | None
    drafter: str | None
    tally: Tally
    num_failovers: int
    num_drafter_changes: int
    started_ms: float
    first_ms: float | None
    last_ms: float | None
    total_ms: float
    steps: tuple[Step, ...]
    num_left_out: int
    packed: bytes

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return 1024 + 160 * len(self.steps) + len(self.packed)

    @property
    def tpot_ms(self) -> float | None:
        if self.first_ms is None or self.last_ms is None or self.num_tokens < 2:
            return None
        return (self.last_ms - self.first_ms) / (self.num_tokens - 1)

    @property
    def verdicts(self) -> list[VerdictEntry]:
        numbers = array("f", self.packed)
        return [_entry(numbers[i : i + NUM_FIELDS]) for i in range(0, len(numbers), NUM_FIELDS)]


class Journal:
    """Of one session while it lives. asked_at: when its request came, in seconds of time.monotonic()."""

    def __init__(self, asked_at: float, now: float) -> None:
        self._asked_at = asked_at
        self._unix_at = time.time() - (now - asked_at)
        self._started_ms = self._ms(now)
        self._steps: list[Step] = []
        self._verdicts = array("f")
        self._num_left_out = 0
        self._num_tokens = 0
        self._first_ms: float | None = None
        self._last_ms: float | None = None
        self._sent_ms: float | None = None  # of the newest draft that a verdict told

    def on_verdict(self, verdict: Verdict, session: Session, window: int | None, now: float) -> None:
        """Takes a verdict that the session has merged."""
        at_ms, stream, tally = (now - self._asked_at) * 1e3, session.stream, verdict.tally
        num_tokens = stream.num_answered
        num_new = num_tokens - self._num_tokens
        if num_new:
            self._num_tokens, self._last_ms = num_tokens, at_ms
            if self._first_ms is None:
                self._first_ms = at_ms
        if len(self._verdicts) >= MAX_VERDICTS * NUM_FIELDS:
            self._num_left_out += 1
            return
        num_known = len(verdict.token_ids) - num_new
        num_accepted = max(0, verdict.accepted - num_known)
        num_looked_up = max(0, verdict.accepted + verdict.looked_up - num_known) - num_accepted
        own = OWN.index(stream.committed[-1].source) if num_new > num_accepted + num_looked_up else 0
        held_ms = NO_DRAFT
        if verdict.echo is not None and verdict.echo.sent_ms != self._sent_ms:
            self._sent_ms, held_ms = verdict.echo.sent_ms, verdict.echo.hold_ms
        told = (at_ms, verdict.term, num_new, num_accepted, num_looked_up, own)
        fates = (tally.accepted, tally.rejected, tally.late, tally.discarded)
        of_pass = (verdict.compute_ms, verdict.batch, verdict.pass_tokens, verdict.queue)
        self._verdicts.extend((*told, *fates, *of_pass, held_ms, NO_WINDOW if window is None else window))

    def on_said(self, message: Open | Speculate | Poll | Close, instance_id: str, now: float) -> None:
        """Takes what the gateway sends."""
        self._add(SAID[type(message)], instance_id, message.term, now)

    def on_heard(self, message: Opened | Failure, sender_id: str, now: float) -> None:
        if isinstance(message, Failure):
            self._add("failure", sender_id, message.term, now, message.code)
        else:
            self._add("opened" if message.has_room else "waiting", sender_id, message.term, now)

    def on_absent(self, service: Service, session: Session, now: float) -> None:
        """Takes that the session's verifier or drafter has no subscriber."""
        instance_id = session.verifier_id if service == "verifier" else session.drafter_id
        if instance_id is not None:
            self._add("absent", instance_id, session.term, now)

    def on_gone(self, instance_id: str, session: Session, now: float) -> None:
        """Takes that the heartbeats of an instance have stopped."""
        self._add("gone", instance_id, session.term, now)

    def closed(self, session: Session, now: float, *, is_whole: bool) -> Record:
        """What remains. is_whole: the text ended before the session's last token."""
        generation, failure = session.generation, session.failure
        speculation = generation.speculation
        ends = "cancelled" if not is_whole else "stop"
        return Record(
            session_id=session.session_id,
            asked_at=self._unix_at,
            speculation=speculation.mode if speculation else "off",
            num_prompt_tokens=len(generation.prompt_ids),
            num_tokens=session.num_tokens,
            outcome=failure.code if failure else session.stream.finish or ends,
            verifier=_name(session.verifier_id),
            drafter=_name(session.drafter_id),
            tally=session.tallies.total,
            num_failovers=session.num_failovers,
            num_drafter_changes=session.num_drafter_changes,
            started_ms=self._started_ms,
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            total_ms=self._ms(now),
            steps=tuple(self._steps),
            num_left_out=self._num_left_out,
            packed=self._verdicts.tobytes(),
        )

    def _add(self, kind: StepKind, instance_id: str, term: int, now: float, detail: str = "") -> None:
        if len(self._steps) < MAX_STEPS:
            self._steps.append(Step(round(self._ms(now), 3), kind, instance_name(instance_id), term, detail))
        else:
            self._num_left_out += 1

    def _ms(self, now: float) -> float:
        return (now - self._asked_at) * 1e3


def _name(instance_id: str | None) -> str | None:
    return None if instance_id is None else instance_name(instance_id)


def _entry(numbers: array[float]) -> VerdictEntry:
    at_ms, term, num_new, num_accepted, num_looked_up, own, *rest = numbers
    *fates, pass_ms, batch, num_pass_tokens, queue, held_ms, window = rest
    return VerdictEntry(
        at_ms=at_ms,
        term=int(term),
        num_new=int(num_new),
        num_accepted=int(num_accepted),
        num_looked_up=int(num_looked_up),
        own=OWN[int(own)],
        tally=Tally(*map(int, fates)),
        pass_ms=pass_ms,
        batch=int(batch),
        num_pass_tokens=int(num_pass_tokens),
        queue=queue,
        held_ms=None if held_ms == NO_DRAFT else held_ms,
        window=None if window == NO_WINDOW else int(window),
    )
