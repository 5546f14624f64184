"""When a request must be over: its answer ends then, with an error that says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.gateway.errors import ApiError
from services.gateway.metrics import GatewayMetrics


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of time.monotonic(); timeout_s None: never."""

    asked_at: float
    timeout_s: float | None
    metrics: GatewayMetrics

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Breaks the block off at the deadline and raises ApiError, which whoever follows tells the client."""
        left_s = None if self.timeout_s is None else max(0.0, self.asked_at + self.timeout_s - time.monotonic())
        timer = asyncio.timeout(left_s)
        try:
            async with timer:
                yield
        except TimeoutError as error:
            if not timer.expired():
                raise
            self.metrics.refused.labels("deadline_exceeded").inc()
            message = f"The answer was not complete within {self.timeout_s:g} s"
            raise ApiError(504, message, code="deadline_exceeded") from error
