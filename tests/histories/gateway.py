"""A gateway of a history: the sessions of the service, with a stand-in for the task that drives each of them.

What is left out is the event loop and HTTP: `settle` sends and runs timers as `LiveSession` does, and a client takes
the tokens at once.
"""

from __future__ import annotations

import math
import random

from services.gateway.fleet.peers import NO_CHANGE, PeerFleet
from services.gateway.session.generation import Generation
from services.gateway.session.manager import Sessions
from services.gateway.session.placement import Placement
from services.gateway.session.session import Session
from services.gateway.session.timeouts import SessionTiming
from services.gateway.session.verdict_stream import Committed
from shared.bus.bus import Absent
from shared.policies.routing import ROUTERS
from shared.protocol import subjects
from shared.protocol.messages import Close, Failure, Heartbeat, Message, Opened, Sampling, TokenIds, Verdict
from tests.histories import schedule
from tests.histories.process import Process, at_once
from tests.histories.target import STOP, VOCABULARY, Text, logprobs_after
from tests.histories.violation import Uncounted, Violation

HEARTBEAT_MS = 1000.0
GONE_MS = 3 * HEARTBEAT_MS + 2000.0  # from a verifier's last sign of life until its sessions are opened elsewhere
LATE_MS = 100.0  # of a timer
TICK_MS = 1e-3  # clocks are compared in other units
REJOIN_MS = 6000.0  # until a gateway knows a verifier again whose troubles are over


class DirectSessions(Sessions):
    """Sessions that publish without a timeout, so that nothing waits for an event loop."""

    async def _publish(self, subject: str, message: Message, absent_to: str | None = None) -> None:
        await self._bus.publish(subject, message, absent_to=absent_to)


class Client:
    """Stands in for a `LiveSession`: one answer, and what its client has of it."""

    def __init__(self, gateway: GatewayProcess, session: Session, request: schedule.Request, text: Text) -> None:
        self.gateway = gateway
        self.session = session
        self.journal = None
        self.request = request
        self.text = text
        self.is_closing = False
        self.timer_ms = math.inf
        self.token_ms = gateway.now_ms  # when the last token came
        self.heard_ms = gateway.now_ms  # when a verifier last answered
        self.bound: set[str] = set()  # instances that were sent the session
        self.closed: set[str] = set()

    @property
    def name(self) -> str:
        return f"#{self.session.session_id[-2:]}"

    def wake(self) -> None:
        self.gateway.woken[self.session.session_id] = self

    def take(self) -> None:
        """Takes the new tokens; each must be the target's own at its position."""
        new = self.session.take_tokens()
        if not new:
            return
        self.check_pace()
        self.token_ms = self.gateway.now_ms
        for committed in new:
            self._check_logprobs(committed)
            self.text.extend([committed.token_id], self.gateway.world.numerics_of(self.session.verifier_id))

    def check_pace(self) -> None:
        """Where only drafters fail, no session stalls for their sake."""
        stall_ms, most_ms = self.gateway.now_ms - self.token_ms, self.gateway.longest_stall_ms
        if stall_ms > most_ms:
            raise Violation(f"{self.name} stalls for {stall_ms:.0f} ms, where {most_ms:.0f} are allowed")

    def _check_logprobs(self, committed: Committed) -> None:
        num_top = self.request.num_top
        wanted = None if num_top is None else logprobs_after(self.text.codes[-1], num_top)
        if committed.logprobs != wanted:
            raise Violation(f"a token of {self.name} has the logprobs {committed.logprobs}, not {wanted}")

    @property
    def is_whole(self) -> bool:
        """Whether the answer ends with its first stop id or its last token, and says so."""
        answer, finish = self.text.answer, self.session.stream.finish
        if STOP in answer[:-1] or len(answer) > self.request.max_tokens:
            return False
        return finish == ("stop" if answer[-1] == STOP else "length") and (
            answer[-1] == STOP or len(answer) == self.request.max_tokens
        )


class GatewayProcess(Process):
    """One gateway."""

    service = "gateway"
    plan: schedule.Gateway

    def start(self) -> None:
        self.woken: dict[str, Client] = {}
        self.clients: dict[str, Client] = {}
        self.is_draining = False
        timeout_s = self.world.schedule.session_timeout_s
        placement = Placement(PeerFleet(1), ROUTERS["jsq"](), ROUTERS["jsq8"](), random.Random(self.rng.random()))
        timing = SessionTiming(session_timeout_s=timeout_s)
        self.sessions = DirectSessions(self.instance_id, self, placement, timing, 256, Uncounted())  # type: ignore[arg-type]
        self.longest_stall_ms = self.world.schedule.longest_stall_ms
        self.every(HEARTBEAT_MS, self._beat)

    def receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Heartbeat):
            self.sessions.on_heartbeat(subject, message)
            return
        if isinstance(message, Opened | Verdict | Failure):
            self._note_answer(subjects.sender(subject), message)
        self.sessions.on_message(subject, message)

    def _note_answer(self, sender_id: str, message: Opened | Verdict | Failure) -> None:
        client = self.clients.get(message.session_id)
        if client is None or (client.session.verifier_id, client.session.term) != (sender_id, message.term):
            return
        if not isinstance(message, Failure) or message.code == "overloaded":
            client.heard_ms = self.now_ms

    # --- requests --------------------------------------------------------------------------------------------------

    def ask(self, number: int, request: schedule.Request) -> None:
        """A client sends a request."""
        if self.is_draining:
            return
        session_id = f"{self.world.schedule.seed % (1 << 100):030x}{number:02x}"
        text = self.world.texts[session_id] = Text(request.prompt)
        generation = Generation(
            session_id=session_id,
            model="m",
            prompt_ids=TokenIds(request.prompt),
            max_tokens=request.max_tokens,
            sampling=Sampling(),
            stop_ids=TokenIds((STOP,)),
            speculation=request.speculation,
            num_top=request.num_top,
            cache_scope=request.scope,
            vocab_size=VOCABULARY,
        )
        now_s = self.world.clock.monotonic()
        session = Session.started(generation, self.sessions.placement, self.sessions._timing, now_s)
        client = self.clients[session_id] = Client(self, session, request, text)
        self.sessions._live[session_id] = client  # type: ignore[assignment]
        client.wake()
        if request.stays_ms < math.inf:
            self.after(request.stays_ms, self._leave, client)

    def drain(self, fault: schedule.Fault) -> None:
        self.is_draining = True

    def hand_over(self) -> None:
        self.sessions.abort("the gateway is shutting down")
        for client in list(self.clients.values()):
            self._leave(client)
        self.settle()

    # --- what the driver of each session does ----------------------------------------------------------------------

    def settle(self) -> None:
        while self.woken:
            _, client = self.woken.popitem()
            self._advance(client)

    def _advance(self, client: Client) -> None:
        session = client.session
        client.take()
        self._send(client)
        if session.phase == "over":
            if not client.is_closing:
                client.is_closing = True
                self._check_outcome(client)
                self.after(client.request.read_ms, self._leave, client)
            return
        due_s = session.due
        if due_s is not None:
            due_ms = max(self.now_ms, due_s * 1e3 + self.began_ms) + TICK_MS
            if due_ms < client.timer_ms:
                client.timer_ms = due_ms
                self.world.at(due_ms, self, self._on_timer, client, due_ms)

    def _send(self, client: Client) -> None:
        for send in client.session._outbox._waiting:
            (client.closed if isinstance(send.message, Close) else client.bound).add(send.instance_id)
        at_once(self.sessions.send(client.session))

    def _on_timer(self, client: Client, due_ms: float) -> None:
        if due_ms == client.timer_ms and client.session.session_id in self.clients:
            client.timer_ms = math.inf
            client.session.on_timer(self.world.clock.monotonic())
            client.wake()

    def _leave(self, client: Client) -> None:
        """The client has its answer, or has left."""
        session = client.session
        if self.clients.pop(session.session_id, None) is None:
            return
        session.close(self.world.clock.monotonic())
        self.sessions.forget(session)
        self._send(client)
        if client.bound - client.closed:
            raise Violation(f"{client.name} ends without a Close to {client.bound - client.closed}")

    def _beat(self) -> None:
        at_once(self.sessions.send_heartbeat(HEARTBEAT_MS / 1e3, ["m"], draining=self.is_draining))
        self.settle()
        for client in self.clients.values():
            self._check_progress(client)

    # --- what must hold --------------------------------------------------------------------------------------------

    def _check_outcome(self, client: Client) -> None:
        session = client.session
        if session.failure is None:
            self.world.num_answers += 1
            self.world.num_tokens += len(client.text.answer)
            if not client.is_whole:
                raise Violation(f"{client.name} ends with {session.stream.finish}: {client.text.answer}")
            return
        self.world.num_failed += 1
        code, why = session.failure.code, str(session.failure)
        if not self._may_fail(client, why):
            raise Violation(f"{client.name} fails without a cause: {code}, {why}")

    def _may_fail(self, client: Client, why: str) -> bool:
        """Whether the protocol allows this failure now."""
        timeout_ms = self.world.schedule.session_timeout_s * 1e3
        if "shutting down" in why:
            return self.is_draining
        if "has answered for" in why:
            return self.now_ms - client.heard_ms >= timeout_ms - 1 and not self._has_help(max(timeout_ms, REJOIN_MS))
        if "no verifier takes" in why:
            return not client.session.was_opened and not self._has_help(REJOIN_MS)
        if "brought no token" in why:
            return not self._has_help(REJOIN_MS)
        return False

    def _has_help(self, for_ms: float) -> bool:
        """Whether a verifier and the links to it were without trouble for so long."""
        since_ms = self.now_ms - for_ms
        if self.world.schedule.trouble_until(self.name, self.now_ms) > since_ms or self.resumed_ms > since_ms:
            return False
        return any(
            verifier.resumed_ms <= since_ms
            and self.world.schedule.trouble_until(verifier.name, self.now_ms) <= since_ms
            for verifier in self.world.living("verifier")
        )

    def _check_progress(self, client: Client) -> None:
        session = client.session
        if session.phase == "over":
            return
        client.check_pace()
        if self.now_ms - max(client.heard_ms, self.resumed_ms) > self.world.schedule.session_timeout_s * 1e3 + GONE_MS:
            raise Violation(f"{client.name} has waited for {self.now_ms - client.heard_ms:.0f} ms")
        due_s = session.due
        if due_s is not None and self.now_ms - max(due_s * 1e3 + self.began_ms, self.resumed_ms) > LATE_MS:
            raise Violation(f"a timer of {client.name} is late")
        died_ms = self.world.deaths.get(session.verifier_id or "")
        if died_ms is not None and session.phase != "waiting":
            heard_ms = max(self._heard_ms(session.verifier_id), client.heard_ms)
            if self.now_ms - max(died_ms, heard_ms, self.resumed_ms) > GONE_MS:
                raise Violation(
                    f"{client.name} stays at {session.verifier_id}, dead for {self.now_ms - died_ms:.0f} ms"
                )

        self._check_drafter(client)

    def _check_drafter(self, client: Client) -> None:
        """A dead drafter stays bound to no session that runs."""
        drafter_id = client.session.drafter_id
        died_ms = self.world.deaths.get(drafter_id or "")
        if died_ms is None or client.session.phase != "running":
            return
        if self.now_ms - max(died_ms, self._heard_ms(drafter_id), self.resumed_ms) > GONE_MS:
            raise Violation(f"{client.name} keeps {drafter_id}, dead for {self.now_ms - died_ms:.0f} ms")

    def _heard_ms(self, instance_id: str | None) -> float:
        """When the newest heartbeat of an instance came that the gateway still counts."""
        peer = self.sessions.fleet._peers.get(instance_id or "")
        return peer.heard_at * 1e3 + self.began_ms if peer else 0.0

    # --- the end ---------------------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        left = [f"{self.name} has {client.name} ({client.session.phase})" for client in self.clients.values()]
        return [*left, *[f"{self.name} has a Close to send" for _ in self.sessions._strays]]

    def check_end(self) -> None:
        if len(self.sessions):
            raise Violation(f"{self.name} keeps sessions that are over")
        if own := self.sessions.fleet._own:
            raise Violation(f"{self.name} counts sessions of its own that are over: {dict(own)}")
        for instance_id, peer in self.sessions.fleet._peers.items():
            if peer.unknown != NO_CHANGE:
                raise Violation(f"{self.name} counts sessions at {instance_id} that are over: {peer.unknown}")
