"""When requests are made: open loop (at times fixed in advance) or closed loop (each client one at a time).

Invariant: in an open loop no answer delays a request. Each request has a task of its own and a due time drawn before
the run, from which its latency counts. Otherwise slow answers would reduce the load that makes them slow (coordinated
omission).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.requests import ScheduledRequest
from model_zoo.prompt_file import read_rows

SendRequest: TypeAlias = Callable[[ScheduledRequest], Awaitable[RequestSample]]


@dataclass(frozen=True, slots=True)
class TraceArrival:
    """A request of a trace: seconds after the first one, and the length of its answer."""

    at_s: float
    num_tokens: int


def read_arrivals(path: Path) -> list[TraceArrival]:
    """The fields arrival_ms and target_tokens of a trace, by time."""
    arrivals = []
    for number, row in enumerate(read_rows(path), start=1):
        at_ms, num_tokens = row.get("arrival_ms"), row.get("target_tokens")
        if not isinstance(at_ms, int | float) or not isinstance(num_tokens, int) or at_ms < 0 or num_tokens < 1:
            raise ValueError(f"{path}:{number}: arrival_ms (0 or more) and target_tokens (1 or more) are required")
        arrivals.append((at_ms, num_tokens))
    arrivals.sort(key=lambda arrival: arrival[0])
    return [TraceArrival((at_ms - arrivals[0][0]) / 1e3, num_tokens) for at_ms, num_tokens in arrivals]


def poisson_times(rate: float, number: int, seed: int) -> list[float]:
    """Seconds of `number` arrivals at `rate` per second on average, the first at 0."""
    generator = random.Random(seed)
    gaps = (generator.expovariate(rate) for _ in range(number - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


async def open_loop(
    send: SendRequest, prompts: Sequence[str], arrivals: Sequence[TraceArrival | float]
) -> list[RequestSample]:
    """One request at each arrival, prompts in turn. A TraceArrival also sets the length of its answer."""
    started_at = time.monotonic()

    async def one(number: int, arrival: TraceArrival | float) -> RequestSample:
        at_s, max_tokens = (arrival, None) if isinstance(arrival, float) else (arrival.at_s, arrival.num_tokens)
        index, due_at = number % len(prompts), started_at + at_s
        await asyncio.sleep(due_at - time.monotonic())
        return await send(ScheduledRequest(index, prompts[index], due_at, started_at, max_tokens))

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(number, arrival)) for number, arrival in enumerate(arrivals)]
    return [task.result() for task in running]


async def closed_loop(
    send: SendRequest,
    prompts: Sequence[str],
    num_clients: int,
    num_requests: int | None,
    think_s: float,
    seconds: float = math.inf,
) -> list[RequestSample]:
    """`num_clients` send one request after another, with a pause of `think_s`.

    They stop after `num_requests` (None: no limit) or `seconds`; answers in progress are read to their end.
    """
    started_at = time.monotonic()
    numbers = itertools.islice(itertools.count(), num_requests)
    samples: list[RequestSample] = []

    async def client() -> None:
        for number in numbers:
            if time.monotonic() >= started_at + seconds:
                return
            index = number % len(prompts)
            samples.append(await send(ScheduledRequest(index, prompts[index], time.monotonic(), started_at)))
            await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_clients):
            tasks.create_task(client())
    return samples
