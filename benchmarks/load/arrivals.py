"""When requests are made: an open loop (at times fixed in advance) or a closed one (each client one at a time).

Invariant: in an open loop no answer holds back a request. Each has a task of its own, due at a time that was drawn
before the run, and its latency counts from there (otherwise slow answers would thin out the load that makes them slow:
coordinated omission).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from benchmarks.harness.asking import Due
from benchmarks.harness.latency import Sample
from benchmarks.harness.prompts import Arrival

Measure: TypeAlias = Callable[[Due], Awaitable[Sample]]


def poisson_times(rate: float, number: int, seed: int) -> list[float]:
    """Seconds of `number` arrivals, `rate` per second on average, the first at 0."""
    generator = random.Random(seed)
    gaps = (generator.expovariate(rate) for _ in range(number - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


async def open_loop(measure: Measure, prompts: Sequence[str], arrivals: Sequence[Arrival | float]) -> list[Sample]:
    """One request at each arrival, prompts in turn; an Arrival names its answer's length too."""
    beginning = time.monotonic()

    async def one(number: int, arrival: Arrival | float) -> Sample:
        at_s, max_tokens = (arrival, None) if isinstance(arrival, float) else (arrival.at_s, arrival.num_tokens)
        due = Due(number % len(prompts), prompts[number % len(prompts)], beginning + at_s, beginning, max_tokens)
        await asyncio.sleep(due.at - time.monotonic())
        return await measure(due)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one(number, arrival)) for number, arrival in enumerate(arrivals)]
    return [task.result() for task in running]


async def closed_loop(
    measure: Measure,
    prompts: Sequence[str],
    num_clients: int,
    num_requests: int | None,
    think_s: float,
    seconds: float = math.inf,
) -> list[Sample]:
    """`num_clients` ask one request after the other, with a pause of `think_s`, until `num_requests` are made (None:
    any number) or `seconds` are over. Each answer that was begun is waited for."""
    beginning = time.monotonic()
    numbers = itertools.islice(itertools.count(), num_requests)
    samples: list[Sample] = []

    async def client() -> None:
        for number in numbers:
            if time.monotonic() >= beginning + seconds:
                return
            due = Due(number % len(prompts), prompts[number % len(prompts)], time.monotonic(), beginning)
            samples.append(await measure(due))
            await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_clients):
            tasks.create_task(client())
    return samples
