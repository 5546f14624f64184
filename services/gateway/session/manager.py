"""The gateway's sessions on the bus: receives messages, wakes the session concerned, sends its messages.

Invariant: one task drives each session. It sends all messages and runs the timer, whatever the owner does, the task
that serves the client. Bus callbacks only change a session's state and wake both tasks. When the owner's block ends,
for whatever reason, the session is closed everywhere and its driver ends. Tokens that the owner has not taken are kept:
at most `max_tokens` in a session. Only the subject identifies a sender.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import cast

import structlog

from services.gateway.fleet.peers import PeerFleet
from services.gateway.fleet.windows import DecidedWindows
from services.gateway.inspector.journal import Journal
from services.gateway.inspector.recent import RecentRequests
from services.gateway.metrics import GatewayMetrics, SessionCounts
from services.gateway.session.generation import Generation
from services.gateway.session.outbox import Send
from services.gateway.session.placement import Placement
from services.gateway.session.session import Session
from services.gateway.session.timeouts import SessionTiming
from services.gateway.session.verdict_stream import Committed
from shared.bus.bus import ABSENT, Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import (
    Close,
    Failure,
    Heartbeat,
    Load,
    Message,
    Opened,
    Poll,
    Service,
    Verdict,
    WindowDecision,
)

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT_S = 5.0
LOOK_S = 0.5  # for a verifier that is expected back
MAX_LOGGED = 8  # ids in one line
_ABSENT_VERB = re.compile(ABSENT + r"-(?P<session>[0-9a-f]{32})-(?P<service>verifier|drafter)-(?P<term>[0-9]+)")


class LiveSession:
    """One session, the task that drives it, and what its owner awaits."""

    def __init__(self, session: Session, sessions: Sessions, journal: Journal | None) -> None:
        self.session = session
        self.journal = journal
        self._sessions = sessions
        self._changed = asyncio.Event()  # for the driver
        self._news = asyncio.Event()  # for the owner
        self._looks_at: float | None = None  # when a driver that waits for its timer looks at the session
        self._is_closed = False
        self._driver = asyncio.create_task(self._drive(), name=f"session {session.session_id}")

    @property
    def window(self) -> int | None:
        """The requested window of static speculation, else the newest decision for the session's pair."""
        speculation = self.session.generation.speculation
        if speculation is not None and speculation.mode == "static":
            return speculation.window
        return self._sessions.windows.window(self.session.drafter_id, self.session.verifier_id)

    def wake(self) -> None:
        """The session's state has changed. Most changes only put its timer off: the driver looks when it would have."""
        due, looks_at = self.session.due, self._looks_at
        is_sooner = due is not None and (looks_at is None or due < looks_at)
        if is_sooner or self.session.next_send is not None:
            self._changed.set()
        self._news.set()

    def close(self, num_tokens: int | None = None) -> None:
        """Ends the session everywhere. num_tokens: as in Session.close."""
        self.session.close(time.monotonic(), num_tokens)
        self._sessions.forget(self.session, is_whole=num_tokens is not None)
        self._is_closed = True
        self._changed.set()

    async def closed(self) -> None:
        """Returns once the driver of a closed session has sent the last messages and ended."""
        if not self._driver.done():
            try:
                await asyncio.wait({self._driver})
            finally:
                self._driver.cancel()  # matters only where the owner is cancelled meanwhile
        await self._sessions.send(self.session, self.journal)  # what a driver that failed has left

    async def opened(self) -> None:
        """Returns once a verifier has taken the session; raises SessionFailed when the session has failed."""
        while not self.session.was_opened and self.session.phase != "over":
            await self._wait_for_news()
        self._raise_failure()

    async def tokens(self) -> AsyncGenerator[list[Committed], None]:
        """The committed tokens in order, as they come; raises SessionFailed when the session has failed."""
        while True:
            over = self.session.phase == "over"
            if new := self.session.take_tokens():
                yield new
            if over:
                break
            await self._wait_for_news()
        self._raise_failure()

    async def _wait_for_news(self) -> None:
        """Waits until the session's state has changed since the last call. Raises what ended the driver."""
        await self._news.wait()
        self._news.clear()
        if self._driver.done():
            self._driver.result()

    def _raise_failure(self) -> None:
        if self.session.failure is not None:
            raise self.session.failure

    async def _drive(self) -> None:
        """Sends the session's messages and runs its timer until the session is closed."""
        try:
            while True:
                is_closed = self._is_closed
                await self._sessions.send(self.session, self.journal)
                if is_closed:
                    return
                await self._wait_for_change()
        finally:
            self._news.set()

    async def _wait_for_change(self) -> None:
        """Returns when the session has a message, a sooner timer or an end, or its timer was due or put off."""
        self._looks_at = due = self.session.due
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            self.session.on_timer(time.monotonic())
            self._news.set()
        self._changed.clear()


class Sessions:
    """All sessions of one gateway. recent: where they leave what the request inspector shows; None: it is off."""

    def __init__(
        self,
        instance_id: str,
        bus: Bus,
        placement: Placement,
        timing: SessionTiming,
        max_sessions: int,
        metrics: GatewayMetrics,
        recent: RecentRequests | None = None,
    ) -> None:
        self.instance_id = instance_id
        self.recent = recent
        self.max_sessions = max_sessions
        self.placement = placement
        self.windows = DecidedWindows()
        self._bus = bus
        self._timing = timing
        self._metrics = metrics
        self._live: dict[str, LiveSession] = {}
        self._strays: list[Send] = []  # Closes for sessions that are over here, but not at a verifier
        self._joined = asyncio.Event()  # set, and replaced, when an instance joins

    def __len__(self) -> int:
        return len(self._live)

    @property
    def fleet(self) -> PeerFleet:
        return self.placement.fleet

    async def wait_for_verifier(self, model: str) -> None:
        """Waits while the last verifier of the model was lost moments ago and none has joined."""
        while self.fleet.has_just_lost(model, time.monotonic()):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._joined.wait()

    @asynccontextmanager
    async def live(self, generation: Generation, asked_at: float | None = None) -> AsyncIterator[LiveSession]:
        """A session, closed when its text is complete or the block ends. The caller holds a slot (gate.py). asked_at:
        when its request came, in seconds of time.monotonic()."""
        now = time.monotonic()
        session = Session.started(generation, self.placement, self._timing, now)
        journal = None if self.recent is None else Journal(now if asked_at is None else asked_at, now)
        live = self._live[session.session_id] = LiveSession(session, self, journal)
        self._metrics.sessions.set(len(self._live))
        try:
            yield live
        finally:
            live.close()
            try:
                await live.closed()
            finally:  # of an owner that is cancelled again meanwhile
                while send := session.next_send:
                    self._strays.append(send)
                    session.mark_sent()

    def forget(self, session: Session, *, is_whole: bool = False) -> None:
        """Counts a closed session, once. is_whole: its text is complete."""
        live = self._live.pop(session.session_id, None)
        if live is None:
            return
        if self.recent is not None and live.journal is not None:
            record = live.journal.closed(session, time.monotonic(), is_whole=is_whole)
            self.recent.add(session.generation.cache_scope or "", record)
        self._metrics.sessions.set(len(self._live))
        counts = SessionCounts(
            len(session.generation.prompt_ids),
            session.stream.num_answered,
            session.tallies.total,
            session.num_failovers,
            session.num_drafter_changes,
            session.num_conflicts,
            session.failure.code if session.failure is not None else None,
        )
        self._metrics.count_session(counts)

    def abort(self, reason: str) -> None:
        """Fails every session; their owners answer the clients with this reason."""
        for live in self._live.values():
            live.session.abort(reason)
            live.wake()

    # --- in --------------------------------------------------------------------------------------------------------

    def on_message(self, subject: str, message: Message | Absent) -> None:
        """Handler of the gateway's inbox."""
        sender_id, now = subjects.sender(subject), time.monotonic()
        match message:
            case Absent():
                self._on_absent(subjects.verb(subject), now)
            case Opened() | Verdict() | Failure() if subjects.fits(subject, message):
                self._on_answer(sender_id, message, now)
            case _:
                self._metrics.dropped.labels("not for a gateway").inc()

    def _on_answer(self, sender_id: str, message: Opened | Verdict | Failure, now: float) -> None:
        live = self._live.get(message.session_id)
        if live is None:
            self._on_stray(sender_id, message)
            return
        session = live.session
        if sender_id not in (session.verifier_id, session.drafter_id) or message.term != session.term:
            self._metrics.dropped.labels("foreign sender or stale term").inc()
            return
        if live.journal is not None and not isinstance(message, Verdict):
            live.journal.on_heard(message, sender_id, now)
        match message:
            case Opened():
                session.on_opened(sender_id, message, now)
            case Verdict():
                session.on_verdict(sender_id, message, now)
                if live.journal is not None:
                    live.journal.on_verdict(message, session, live.window, now)
            case Failure():
                log.info("refused", session=session.session_id, by=sender_id, code=message.code, why=message.message)
                session.on_failure(sender_id, message, now)
        live.wake()

    def _on_stray(self, sender_id: str, message: Opened | Verdict | Failure) -> None:
        """A peer still works on a session that is over here: its Close was lost, or is under way."""
        self._metrics.dropped.labels("unknown session").inc()
        if isinstance(message, Verdict) and message.finish is None and len(self._strays) < self.max_sessions:
            close = Close(message.session_id, message.term)
            self._strays.append(Send("verifier", sender_id, close))

    def _on_absent(self, verb: str, now: float) -> None:
        """A message of `send` had no subscriber. verb: absent-<session id>-<service>-<term>, as set there."""
        named = _ABSENT_VERB.fullmatch(verb)
        live = self._live.get(named["session"]) if named else None
        if named is None or live is None:
            self._metrics.dropped.labels("unknown session").inc()
            return
        log.info("absent", session=named["session"], at=named["service"], term=named["term"])
        session, service, term = live.session, cast(Service, named["service"]), int(named["term"])
        if live.journal is not None and term == session.term:
            live.journal.on_absent(service, session, now)
        session.on_absent(service, term, now)
        live.wake()

    def on_heartbeat(self, subject: str, message: Message | Absent) -> None:
        """Handler of the heartbeats."""
        if not isinstance(message, Heartbeat) or not subjects.fits(subject, message):
            self._metrics.dropped.labels("foreign heartbeat").inc()
        elif self.fleet.observe(message, now := time.monotonic()):
            log.info("joined", peer=message.instance_id, peer_service=message.service, models=message.models)
            self._joined.set()
            self._joined = asyncio.Event()
            for live in self._live.values():
                if live.session.on_joined(message.instance_id, now):
                    live.wake()

    def on_decision(self, subject: str, message: Message | Absent) -> None:
        """Handler of the window decisions that controllers send to drafters."""
        if isinstance(message, WindowDecision) and subjects.fits(subject, message):
            self.windows.observe(message, subjects.sender(subject), time.monotonic())

    # --- out -------------------------------------------------------------------------------------------------------

    async def send_heartbeat(self, interval_s: float, models: list[str], *, draining: bool) -> None:
        """Renews the leases of all sessions; moves sessions away from peers whose heartbeats have stopped."""
        now = time.monotonic()
        self._leave_all(set(self.fleet.expire(now)), now)
        strays, self._strays = self._strays, []
        for send in strays:
            await self._publish(self._subject(send), send.message)
        heartbeat = Heartbeat(
            service="gateway",
            instance_id=self.instance_id,
            interval_s=interval_s,
            models=models,
            max_context=0,
            vocab_size=0,
            fingerprint="",
            load=Load(num_sessions=len(self._live), max_sessions=self.max_sessions),
            draining=draining,
        )
        await self._publish(subjects.broadcast(Heartbeat, "gateway", self.instance_id), heartbeat)

    def _leave_all(self, gone: set[str], now: float) -> None:
        """Moves sessions away from instances that are gone."""
        if not gone:
            return
        log.warning("heartbeats stale", num=len(gone), peers=sorted(gone)[:MAX_LOGGED])
        for live in self._live.values():
            for instance_id in (live.session.verifier_id, live.session.drafter_id):
                if instance_id is not None and instance_id in gone:
                    if live.journal is not None:
                        live.journal.on_gone(instance_id, live.session, now)
                    live.session.on_gone(instance_id, now)
                    live.wake()

    async def send(self, session: Session, journal: Journal | None = None) -> None:
        """Sends the session's messages. Its own timers repeat what gets lost."""
        while (send := session.next_send) is not None:
            if journal is not None:
                journal.on_said(send.message, send.instance_id, time.monotonic())
            if isinstance(send.message, Poll):
                self._metrics.polls.inc()
            absent_to = None
            if not isinstance(send.message, Close):
                verb = f"{ABSENT}-{session.session_id}-{send.service}-{send.message.term}"
                absent_to = subjects.with_verb("gateway", self.instance_id, verb, self.instance_id)
            await self._publish(self._subject(send), send.message, absent_to)
            session.mark_sent()

    def _subject(self, send: Send) -> str:
        return subjects.to(send.service, send.instance_id, type(send.message), self.instance_id)

    async def _publish(self, subject: str, message: Message, absent_to: str | None = None) -> None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await self._bus.publish(subject, message, absent_to=absent_to)
        except TimeoutError:
            log.warning("publish took too long", subject=subject)
