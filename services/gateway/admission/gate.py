"""Admission of requests: first the limits of their key, then the queue for slots, both until their deadline.

Invariant: every request that ends, for whatever reason, returns its slots and is charged for the tokens it got. An
admitted request is refused only by queue_timeout_s, by its deadline, or when the gateway stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from services.gateway.admission.api_keys import ApiKey
from services.gateway.admission.deadline import Deadline
from services.gateway.admission.rate_limits import OverLimit, Quotas
from services.gateway.admission.slots import AdmissionSlots, QueueClosed, QueueTimeout
from services.gateway.errors import ApiError, bad_request
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.session import Session


@dataclass(slots=True)
class AdmissionTicket:
    """An admitted request and its sessions, ordered by prompt, `num_choices` for each."""

    key: ApiKey
    num_sessions: int
    num_choices: int
    deadline: Deadline
    sessions: list[Session] = field(default_factory=list)  # their tokens are charged to the key in the end

    @property
    def num_tokens(self) -> int:
        """Tokens used so far. A prompt counts once for all its choices, and only if a verifier has taken it."""
        opened = {i // self.num_choices: session for i, session in enumerate(self.sessions) if session.was_opened}
        num_read = sum(len(session.generation.prompt_ids) for session in opened.values())
        return num_read + sum(session.num_tokens for session in self.sessions)


class AdmissionGate:
    """Admits requests; every session belongs to an admitted request."""

    def __init__(
        self, slots: AdmissionSlots, queue_timeout_s: float, request_timeout_s: float, metrics: GatewayMetrics
    ) -> None:
        self.slots = slots
        self._quotas = Quotas()
        self._queue_timeout_s = queue_timeout_s
        self._request_timeout_s = request_timeout_s  # 0: none
        self._metrics = metrics

    def deadline(self, asked_at: float, wanted_s: float | None) -> Deadline:
        """The deadline of a request. Raises ApiError where `wanted_s` exceeds the gateway's own limit."""
        most_s = self._request_timeout_s or None
        if wanted_s is None:
            return Deadline(asked_at, most_s, self._metrics)
        if most_s is not None and wanted_s > most_s:
            message = f"timeout_s must be at most {most_s:g}, got {wanted_s:g}"
            raise bad_request(message, "dsd.timeout_s", "invalid_value")
        return Deadline(asked_at, wanted_s, self._metrics)

    def check_queue(self, num_sessions: int = 1) -> None:
        """Raises ApiError (503) if a request for so many sessions would find the queue full."""
        if not self.slots.has_room(num_sessions):
            self._metrics.refused.labels("queue_full").inc()
            message = f"All {self.slots.capacity} sessions are in use and {self.slots.max_waiting} requests wait"
            raise ApiError(503, message, code="queue_full")

    @asynccontextmanager
    async def admitted(
        self, key: ApiKey, num_sessions: int, num_choices: int, deadline: Deadline
    ) -> AsyncIterator[AdmissionTicket]:
        """Holds slots for so many sessions, `num_choices` for each prompt, during the block. Raises ApiError. A request
        must enter only once: two requests that each held a part of their slots could wait for each other for ever."""
        ticket = AdmissionTicket(key, num_sessions, num_choices, deadline)
        most = min(self.slots.capacity, key.limits.max_sessions or self.slots.capacity)
        if num_sessions > most:
            message = f"The request needs {num_sessions} sessions at once; at most {most} are allowed"
            raise bad_request(message, "n", "invalid_value")
        self.check_queue(num_sessions)  # first, so that a full queue does not count against a key's limit
        self._check_quota(key, num_sessions)
        try:
            async with AsyncExitStack() as stack:
                await self._take_slots(stack, ticket)
                yield ticket
        finally:
            self._quotas.leave(key, num_sessions, ticket.num_tokens)
            self._metrics.count_request(key.name, ticket.num_tokens)

    def charge(self, key: ApiKey) -> None:
        """Counts a request that needs no session. Raises ApiError where its key has reached a limit."""
        self._check_quota(key, 0)
        self._quotas.leave(key, 0, 0)
        self._metrics.count_request(key.name, 0)

    async def _take_slots(self, stack: AsyncExitStack, ticket: AdmissionTicket) -> None:
        try:
            with self._metrics.queue.track_inprogress(), self._metrics.queue_seconds.time():
                async with ticket.deadline.kept():
                    await stack.enter_async_context(self.slots.taken(ticket.num_sessions, self._queue_timeout_s))
        except QueueTimeout as error:
            self._metrics.refused.labels("queue_timeout").inc()
            message = f"No session became free within {self._queue_timeout_s:g} s"
            raise ApiError(503, message, code="queue_timeout") from error
        except QueueClosed as error:
            raise ApiError(503, "Not available: the gateway is shutting down", code="draining") from error

    def _check_quota(self, key: ApiKey, num_sessions: int) -> None:
        try:
            self._quotas.enter(key, num_sessions)
        except OverLimit as error:
            self._metrics.refused.labels(error.name).inc()
            message = f"Refused: {error}; retry after {error.retry_after_s} s"
            raise ApiError(429, message, None, "rate_limit_exceeded", error.retry_after_s) from error
