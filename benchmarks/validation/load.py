"""The requests of a case, and clients that make them.

Invariant: each request has an API key of its own, so that no answer finds its prompt's beginning in the KV cache of
another; each names its drafter, as each request of a simulated trace and each client of a simulated closed loop does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.latency import Sample
from client.wire import AnswerOptions, DsdOptions


@dataclass(frozen=True, slots=True)
class Request:
    """Its place among a set of prompts, and who drafts for it; None: target-only."""

    prompt_number: int
    prompt: str
    drafter: str | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests, all made and answered between two times of time.monotonic. Samples are due behind `begin_s`."""

    begin_s: float
    end_s: float
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes requests, greedy ones whose answers don't end before max_tokens."""

    url: str
    model: str
    keys: Iterator[str]

    async def ask(self, request: Request, at: float, beginning: float) -> Sample:
        """A request that is due at `at` (time.monotonic), behind `beginning`."""
        speculation = DsdOptions("adaptive", drafter=request.drafter) if request.drafter else DsdOptions("off")
        options = AnswerOptions(request.max_tokens, temperature=0.0, speculation=speculation)
        due = Due(request.prompt_number, request.prompt, at, beginning)
        async with connected(self.url, next(self.keys)) as gateway:
            return await measure(gateway, Asking(self.model, options, ignore_eos=True), due)


def requests_of_clients(
    prompts: Sequence[str], num: int, num_clients: int, drafters: Sequence[str], max_tokens: int
) -> list[Request]:
    """Prompts in turn. The first are of one client each; clients are spread evenly over the drafters, as the simulator
    does it, and keep theirs, whichever requests they make later (`ask_in_turn`)."""
    owners = [_of_client(i % num_clients, num_clients, drafters) for i in range(num)]
    return [_request(prompts, i, owner, max_tokens) for i, owner in enumerate(owners)]


def requests_at_random(
    prompts: Sequence[str], num: int, drafters: Sequence[str], max_tokens: int, seed: int
) -> list[Request]:
    """Prompts in turn, each for any of the drafters."""
    generator = random.Random(seed)
    owners = [generator.choice(drafters) if drafters else None for _ in range(num)]
    return [_request(prompts, i, owner, max_tokens) for i, owner in enumerate(owners)]


def _request(prompts: Sequence[str], number: int, drafter: str | None, max_tokens: int) -> Request:
    index = number % len(prompts)
    return Request(index, prompts[index], drafter, max_tokens)


def _of_client(client: int, num_clients: int, drafters: Sequence[str]) -> str | None:
    return drafters[int((client + 0.5) / num_clients * len(drafters))] if drafters else None


async def ask_in_turn(asker: Asker, requests: Sequence[Request], num_clients: int, beginning: float) -> list[Sample]:
    """A closed loop: whichever client has its answer makes the next request, with its own drafter, as in the simulator.
    Samples in the order of the requests."""
    samples: dict[int, Sample] = {}
    coming = iter(range(len(requests)))

    async def client(drafter: str | None) -> None:
        for number in coming:
            request = replace(requests[number], drafter=drafter)
            samples[number] = await asker.ask(request, time.monotonic(), beginning)

    async with asyncio.TaskGroup() as tasks:
        for first in requests[:num_clients]:
            tasks.create_task(client(first.drafter))
    return [samples[number] for number in range(len(requests))]


async def ask_at(asker: Asker, requests: Sequence[Request], times_s: Sequence[float], beginning: float) -> list[Sample]:
    """An open loop: each request at its time behind the beginning, whatever becomes of the others."""

    async def one(request: Request, at: float) -> Sample:
        await asyncio.sleep(at - time.monotonic())
        return await asker.ask(request, at, beginning)

    async with asyncio.TaskGroup() as tasks:
        under_way = [
            tasks.create_task(one(request, beginning + at_s)) for request, at_s in zip(requests, times_s, strict=True)
        ]
    return [task.result() for task in under_way]
