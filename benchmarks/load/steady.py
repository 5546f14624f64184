"""Steady load: each client asks again as soon as it has its answer, and the tokens of a stretch of time are counted in
which all are busy.

Answers that all begin at once end at different times where guesses help some more than others. Then the last ones run
in small batches: their total time says too little of speculation, and their time per token too much.

Invariant: clients begin one after the other over `ramp_s`, so answers don't begin or end together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.harness.latency import OK, RequestSample

Ask: TypeAlias = Callable[[int, int], Awaitable[RequestSample]]  # of a client its request of a number


class AnswerFailed(RuntimeError):
    """A request got no whole answer."""


@dataclass(frozen=True, slots=True)
class SteadyTimes:
    """Seconds in which clients join, and in which tokens count."""

    ramp_s: float = 6.0
    counted_s: float = 18.0


@dataclass(frozen=True, slots=True)
class SteadyLoad:
    """tokens_per_s: of all clients together, in the counted time. ttft_ms: of the requests sent in it."""

    tokens_per_s: float
    ttft_ms: list[float]


async def steady_load(ask: Ask, num_clients: int, num_tokens: int, times: SteadyTimes) -> SteadyLoad:
    """Answers of `num_tokens` tokens. Returns when those that began in the counted time have ended. Raises an
    ExceptionGroup with AnswerFailed."""
    begin = time.monotonic() + times.ramp_s
    end = begin + times.counted_s
    sent: list[tuple[float, RequestSample]] = []

    async def client(number: int) -> None:
        await asyncio.sleep(times.ramp_s * number / num_clients)
        request = 0
        while (now := time.monotonic()) < end:
            sample = await ask(number, request)
            if sample.status != OK or sample.num_tokens != num_tokens:
                raise AnswerFailed(f"a request failed: {sample.status}, {sample.num_tokens} tokens")
            sent.append((now, sample))
            request += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_clients):
            tasks.create_task(client(number), name=f"client {number}")
    counted = tokens_between(sent, begin, end)
    return SteadyLoad(counted / times.counted_s, [sample.ttft_ms or 0.0 for at, sample in sent if at >= begin])


def tokens_between(sent: Sequence[tuple[float, RequestSample]], begin: float, end: float) -> float:
    """Tokens that came from `begin` to `end`, if those behind the first came evenly. sent: when each request was sent,
    and its answer."""
    total = 0.0
    for at, sample in sent:
        first, last = at + (sample.first_s or sample.total_s), at + sample.total_s
        total += begin <= first < end
        if last > first:
            total += (sample.num_tokens - 1) * max(0.0, min(last, end) - max(first, begin)) / (last - first)
    return total
