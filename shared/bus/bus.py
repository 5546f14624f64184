"""The bus: typed messages between services, over NATS (nats_bus.py) or inside a process (memory_bus.py).

Invariant: a handler gets whole, well-formed messages, in the order in which they reached its subscription. The bus
counts malformed and lost ones. Delivery is at most once: whoever needs an answer asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog

from shared.bus.parts import Assembler
from shared.protocol import subjects
from shared.protocol.messages import MalformedMessage, Message, decode
from shared.runtime.metrics import BusMetrics

ABSENT = "absent"  # the verb, or its beginning, of subjects on which Absent arrives

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody subscribes to the subject of a message published with `absent_to`. A hint, not a proof."""


Handler: TypeAlias = Callable[[str, Message | Absent], None]


class Subscription(Protocol):
    async def unsubscribe(self) -> None:
        """Ends the subscription; messages in flight to it are lost."""
        ...


class Bus(Protocol):
    """The bus as services use it."""

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        """Sends a message at most once, without waiting for the network. One that can't be sent is dropped and counted.

        absent_to: a subject of the sender's own inbox whose verb begins with "absent", such as
        `subjects.with_verb("gateway", own_id, "absent", receiver_id)`. `Absent` arrives there if nobody subscribes to
        `subject`.
        Raises ValueError for a message above MAX_MESSAGE_BYTES.
        """
        ...

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        """Calls `handler(subject, message)` for each message from now on. A handler must return at once.

        Raises PermissionError if the server denies the pattern, ConnectionError after `close`.
        """
        ...

    async def close(self) -> None:
        """Delivers what was published and received before, then ends all subscriptions."""
        ...


class Receiver:
    """Turns the packets of one subscription into messages: assembles, decodes, counts, calls the handler.

    No packet and no failing handler makes it raise.
    """

    def __init__(self, handler: Handler, metrics: BusMetrics) -> None:
        self._handler = handler
        self._metrics = metrics
        self._assembler = Assembler()

    def receive(self, subject: str, packet: bytes) -> None:
        """Takes a packet. A malformed packet or a failing handler loses that message only."""
        num_dropped = self._assembler.num_dropped
        try:
            data = self._assembler.add(subject, packet, time.monotonic())
            if data is not None:
                self._deliver(subject, decode(data))
        except MalformedMessage as error:
            self._count_malformed(subject, str(error))
        if lost := self._assembler.num_dropped - num_dropped:
            self._metrics.dropped.labels("incomplete").inc(lost)

    def receive_absent(self, subject: str) -> None:
        """Takes the transport's notice that nobody subscribes. A peer may have forged it."""
        if subjects.verb(subject).startswith(ABSENT):
            self._deliver(subject, Absent())
        else:
            self._count_malformed(subject, "notice of absence on a subject with another verb")

    def _deliver(self, subject: str, message: Message | Absent) -> None:
        self._metrics.received_as(type(message)).inc()
        try:
            self._handler(subject, message)
        except Exception:
            self._metrics.dropped.labels("handler failed").inc()
            log.exception("handler failed", subject=subject)

    def _count_malformed(self, subject: str, reason: str) -> None:
        self._metrics.dropped.labels("malformed").inc()
        log.debug("malformed message dropped", subject=subject, reason=reason)
