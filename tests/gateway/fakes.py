"""Peers of a gateway for tests: a verifier with scripted text and a drafter that guesses it, on any bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.bus.bus import Absent, Bus, Subscription
from shared.protocol import subjects
from shared.protocol.messages import (
    Close,
    Draft,
    Failure,
    FailureCode,
    Heartbeat,
    Load,
    Message,
    Open,
    Opened,
    Poll,
    Service,
    Speculate,
    TokenIds,
    TokenLogprobs,
    Verdict,
)
from shared.protocol.pass_row import PassInfo
from shared.protocol.subjects import new_instance_id
from shared.protocol.verifier_session import VerifierSession

MODEL = "tiny"
CONTEXT = 512
VOCABULARY = 320
HEARTBEAT_S = 0.2

Script = Callable[[TokenIds], list[int]]  # the answer to a prompt


def now_ms() -> float:
    return time.monotonic() * 1e3


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """Of the token itself, which is the likeliest, and of those behind it."""
    top = [(token_id + n) % VOCABULARY for n in range(num_top)]
    return TokenLogprobs(-token_id / 64, TokenIds(top), [-token_id / 64 - n for n in range(num_top)])


@dataclass
class Peer:
    """What fake services share: an id, a bus, heartbeats, an end."""

    bus: Bus
    name: str
    service: Service
    heard: list[Message] = field(default_factory=list)
    draining: bool = False
    promised_s: float = 1.0  # between heartbeats; on a busy machine some come late

    def __post_init__(self) -> None:
        self.instance_id = new_instance_id(self.name)
        self._tasks: list[asyncio.Task[None]] = []
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        inbox = subjects.inbox(self.service, self.instance_id)
        self._subscription = await self.bus.subscribe(inbox, self._receive)
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._work())]

    async def kill(self) -> None:
        """Gone at once, without a word."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()

    async def say(self, service: Service, receiver: str, message: Message) -> None:
        await self.bus.publish(subjects.to(service, receiver, type(message), self.instance_id), message)

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.heard if isinstance(message, kind)]

    def _receive(self, subject: str, message: Message | Absent) -> None:
        if not isinstance(message, Absent):
            self.heard.append(message)
            self._hear(subjects.sender(subject), message)

    def _hear(self, sender_id: str, message: Message) -> None:
        raise NotImplementedError

    async def _work(self) -> None:
        raise NotImplementedError

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(
                self.service,
                self.instance_id,
                self.promised_s,
                [MODEL],
                CONTEXT,
                VOCABULARY,
                f"{self.name}-numerics",
                Load(),
                self.draining,
                "CUDA" if self.service == "drafter" else "",
            )
            await self.bus.publish(subjects.broadcast(Heartbeat, self.service, self.instance_id), heartbeat)
            await asyncio.sleep(HEARTBEAT_S)


class FakeVerifier(Peer):
    """Verifies with the real state machine; its target's text is a script, and a pass takes `pass_s`."""

    def __init__(self, bus: Bus, script: Script, name: str = "verifier", pass_s: float = 0.002) -> None:
        super().__init__(bus, name, "verifier")
        self.script = script
        self.pass_s = pass_s
        self.refuses: FailureCode | None = None
        self.refuses_finally = False
        self.max_looked_up = 0  # guesses of its own in a pass
        self.mute = False  # receives messages and sends none
        self.refused_seeds: set[int] = set()  # sessions with these seeds fail for good
        self.deaf_seeds: set[int] = set()  # it does not hear of sessions with these seeds
        self.by_seed: dict[int, list[int]] = {}  # other answers, to sampling with these seeds
        self.sessions: dict[str, VerifierSession] = {}
        self.num_cut_short = 0  # sessions closed before their finish
        self._changed = asyncio.Event()
        self._outbox: asyncio.Queue[tuple[Service, str, Message]] = asyncio.Queue()

    def forget_sessions(self) -> None:
        """As after a restart under the same id."""
        self.sessions.clear()

    def _hear(self, sender_id: str, message: Message) -> None:
        match message:
            case Open():
                self._on_open(sender_id, message)
            case Poll() if message.session_id in self.sessions:
                answer = self.sessions[message.session_id].on_poll(message, now_ms())
                if answer:
                    self._post("gateway", sender_id, answer)
            case Poll():
                self._refuse(sender_id, message, "unknown_session")
            case Draft() if message.session_id in self.sessions:
                answer = self.sessions[message.session_id].on_draft(message, now_ms())
                if answer:
                    self._post("drafter", sender_id, answer)
            case Close():
                session = self.sessions.pop(message.session_id, None)
                self.num_cut_short += session is not None and session.finish is None
        self._changed.set()

    def _on_open(self, sender_id: str, message: Open) -> None:
        if message.sampling.seed in self.deaf_seeds:
            return
        if self.refuses:
            self._refuse(sender_id, message, self.refuses)
            return
        if message.sampling.seed in self.refused_seeds:
            self._refuse(sender_id, message, "internal", finally_=True)
            return
        session = self.sessions.get(message.session_id)
        if session is None:
            self.sessions[message.session_id] = VerifierSession.opened(message, sender_id, now_ms())
        elif message.term > session.term:
            session.rebind(message, now_ms())
        opened = Opened(message.session_id, message.term, 30.0, Load(), f"{self.name}-numerics")
        self._post("gateway", sender_id, opened)

    def _refuse(self, sender_id: str, message: Open | Poll, code: FailureCode, *, finally_: bool = False) -> None:
        retryable = not (self.refuses_finally or finally_)
        failure = Failure(message.session_id, message.term, code, f"{self.name} says no", retryable)
        self._post("gateway", sender_id, failure)

    def _post(self, service: Service, receiver: str, message: Message) -> None:
        if not self.mute:
            self._outbox.put_nowait((service, receiver, message))

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            tasks.create_task(self._verify())

    async def _publish(self) -> None:
        while True:
            await self.say(*await self._outbox.get())

    async def _verify(self) -> None:
        while True:
            await asyncio.sleep(self.pass_s)
            ready = [session for session in self.sessions.values() if session.ready]
            if not ready:
                self._changed.clear()
                await self._changed.wait()
            for session in ready:
                self._pass(session)

    def _pass(self, session: VerifierSession) -> None:
        session.look_up(self.max_looked_up)
        row = session.begin_pass(CONTEXT, 8)
        request = session.request
        text = self.by_seed.get(request.sampling.seed) or self.script(request.prompt_ids)
        first = row.base - len(request.prompt_ids)
        draws = [text[(first + n) % len(text)] for n in range(row.num_draws)]
        told = [] if request.logprobs is None else [logprobs_of(draw, request.logprobs) for draw in draws]
        scored = [logprobs_of(token_id, request.logprobs or 0) for token_id in row.scored_ids]
        verdict = session.end_pass(row, draws, PassInfo(batch=1), now_ms(), told, scored=scored)
        if verdict is not None:
            self._post("gateway", session.gateway_id, verdict)
            if session.drafter_id:
                self._post("drafter", session.drafter_id, verdict)


class FakeDrafter(Peer):
    """Sends the next three tokens of the script after every verdict with new tokens. (Answering every
    verdict would not end: a late guess is answered with a verdict, and repeated messages would multiply.)"""

    def __init__(self, bus: Bus, script: Script, name: str = "drafter") -> None:
        super().__init__(bus, name, "drafter")
        self.script = script
        self.refuses: FailureCode | None = None
        self.sessions: dict[str, Speculate] = {}
        self._lengths: dict[str, int] = {}  # up to where each session's text is known here
        self._outbox: asyncio.Queue[tuple[Service, str, Message]] = asyncio.Queue()

    def _hear(self, sender_id: str, message: Message) -> None:
        match message:
            case Speculate() if self.refuses:
                failure = Failure(message.session_id, message.term, self.refuses, "no", True)
                self._outbox.put_nowait(("gateway", sender_id, failure))
            case Speculate():
                self.sessions[message.session_id] = message
                self._lengths[message.session_id] = len(message.prompt_ids) + len(message.committed_ids)
                self._draft(message, self._lengths[message.session_id], 0, 0)
            case Verdict() if message.session_id in self.sessions and not message.finish:
                order, length = self.sessions[message.session_id], message.base + len(message.token_ids)
                if message.term == order.term and length > self._lengths[message.session_id]:
                    self._lengths[message.session_id] = length
                    self._draft(order, length, message.epoch, 3)
            case Close():
                self.sessions.pop(message.session_id, None)
                self._lengths.pop(message.session_id, None)

    def _draft(self, order: Speculate, base: int, epoch: int, num_guesses: int) -> None:
        text = self.script(order.prompt_ids)
        first = base - len(order.prompt_ids)
        guesses = TokenIds(text[(first + n) % len(text)] for n in range(num_guesses))
        draft = Draft(order.session_id, order.term, epoch, base, guesses, True, now_ms())
        self._outbox.put_nowait(("verifier", order.verifier_id, draft))

    async def _work(self) -> None:
        while True:
            await self.say(*await self._outbox.get())
