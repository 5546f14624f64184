"""The time by which a request must be complete; its answer ends there with an error."""

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
    """`timeout_s` after `asked_at`, in seconds of time.monotonic(); timeout_s None: no deadline."""

    asked_at: float
    timeout_s: float | None
    metrics: GatewayMetrics

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancels the block at the deadline and raises ApiError (504)."""
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
