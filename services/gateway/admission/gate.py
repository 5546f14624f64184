"""How requests come in: by their key's limits, then in line for places, until their deadline.

Invariant: whoever leaves, for whatever reason, gives back its places and is charged for the tokens it got; a request
that was let in is only sent away by queue_timeout_s, its deadline, or the end of the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from services.gateway.admission.api_keys import ApiKey
from services.gateway.admission.deadline import Deadline
from services.gateway.admission.rate_limits import OverLimit, Quotas
from services.gateway.admission.slots import Closed, Places, WaitedTooLong
from services.gateway.errors import ApiError, bad_request
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.session import Session


@dataclass(slots=True)
class Visit:
    """A request that was let in, and the sessions of its answers, `num_choices` of them for each prompt in turn."""

    key: ApiKey
    num_sessions: int
    num_choices: int
    deadline: Deadline
    _sessions: list[Session] = field(default_factory=list)

    def follow(self, session: Session) -> None:
        """Its tokens are charged to the key in the end."""
        self._sessions.append(session)

    @property
    def num_tokens(self) -> int:
        """Tokens taken so far; a prompt counts once for all answers to it, and not where no verifier took it."""
        opened = {i // self.num_choices: session for i, session in enumerate(self._sessions) if session.was_opened}
        num_read = sum(len(session.generation.prompt_ids) for session in opened.values())
        return num_read + sum(session.num_tokens for session in self._sessions)


class Entry:
    """The only way to sessions."""

    def __init__(
        self, places: Places, queue_timeout_s: float, request_timeout_s: float, metrics: GatewayMetrics
    ) -> None:
        self.places = places
        self._quotas = Quotas()
        self._queue_timeout_s = queue_timeout_s
        self._request_timeout_s = request_timeout_s  # 0: none
        self._metrics = metrics

    def deadline(self, asked_at: float, wanted_s: float | None) -> Deadline:
        """When the answer must be complete; a client may only want it sooner than the gateway's own limit."""
        most_s = self._request_timeout_s or None
        if wanted_s is None:
            return Deadline(asked_at, most_s, self._metrics)
        if most_s is not None and wanted_s > most_s:
            raise bad_request(f"An answer may take {most_s:g} s here", "dsd.timeout_s", "invalid_value")
        return Deadline(asked_at, wanted_s, self._metrics)

    def check_line(self, num_sessions: int = 1) -> None:
        """Raises ApiError where a request for so many answers would find the queue full."""
        if not self.places.has_room(num_sessions):
            self._metrics.refused.labels("queue_full").inc()
            message = f"All {self.places.capacity} sessions are in use and {self.places.max_waiting} requests wait"
            raise ApiError(503, message, code="queue_full")

    @asynccontextmanager
    async def admitted(
        self, key: ApiKey, num_sessions: int, num_choices: int, deadline: Deadline
    ) -> AsyncIterator[Visit]:
        """Places for so many answers, `num_choices` to each prompt, as long as the block lasts; raises ApiError. Not
        for reentry by one request: two that each hold a part of what they need would wait for ever."""
        visit = Visit(key, num_sessions, num_choices, deadline)
        self._check_number(visit)
        self.check_line(num_sessions)  # first, so that a full queue costs nobody a request of its limit
        self._enter(visit)
        try:
            async with AsyncExitStack() as places:
                await self._take_places(places, visit)
                yield visit
        finally:
            self._quotas.leave(key, num_sessions, visit.num_tokens)
            self._metrics.count_visit(key.name, visit.num_tokens)

    def _check_number(self, visit: Visit) -> None:
        most = min(self.places.capacity, visit.key.limits.max_sessions or self.places.capacity)
        if visit.num_sessions > most:
            raise bad_request(
                f"{visit.num_sessions} answers at once are more than the {most} allowed", "n", "invalid_value"
            )

    async def _take_places(self, held: AsyncExitStack, visit: Visit) -> None:
        try:
            with self._metrics.queue.track_inprogress(), self._metrics.queue_seconds.time():
                async with visit.deadline.kept():
                    await held.enter_async_context(self.places.taken(visit.num_sessions, self._queue_timeout_s))
        except WaitedTooLong as error:
            self._metrics.refused.labels("queue_timeout").inc()
            message = f"No session became free within {self._queue_timeout_s:g} s"
            raise ApiError(503, message, code="queue_timeout") from error
        except Closed as error:
            raise ApiError(503, "Not available: the gateway is shutting down", code="draining") from error

    def _enter(self, visit: Visit) -> None:
        try:
            self._quotas.enter(visit.key, visit.num_sessions)
        except OverLimit as error:
            self._metrics.refused.labels(error.name).inc()
            message = f"Refused: {error}; wait {error.retry_after_s} s"
            raise ApiError(429, message, None, "rate_limit_exceeded", error.retry_after_s) from error
