"""The requests of a case, and the clients that send them.

Invariant: each request has its own API key, so no answer reuses the KV cache of another prompt. Each names its drafter,
as do the requests of a simulated trace and the clients of a simulated closed loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.validation.cases import RequestLoad
from client.wire import AnswerOptions, DsdOptions


@dataclass(frozen=True, slots=True)
class CaseRequest:
    """A prompt with its index in the set of prompts, and its drafter; None: target-only."""

    prompt_number: int
    prompt: str
    drafter: str | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class RequestSender:
    """Sends greedy requests whose answers continue to max_tokens."""

    url: str
    model: str
    keys: Iterator[str]

    async def send(self, request: CaseRequest, due_at: float, started_at: float) -> RequestSample:
        """Sends a request now. Both times are of time.monotonic."""
        speculation = DsdOptions("adaptive", drafter=request.drafter) if request.drafter else DsdOptions("off")
        template = RequestTemplate(
            self.model, AnswerOptions(request.max_tokens, temperature=0.0, speculation=speculation), ignore_eos=True
        )
        scheduled = ScheduledRequest(request.prompt_number, request.prompt, due_at, started_at)
        async with connected(self.url, next(self.keys)) as gateway:
            return await measure_request(gateway, template, scheduled)


def requests_of(prompts: Sequence[str], load: RequestLoad, drafters: Sequence[str], seed: int) -> list[CaseRequest]:
    """Prompts and lengths in turn. The first requests of a closed loop are of one client each.

    As in the simulator, clients are spread evenly over the drafters and keep their drafter (`send_in_turn`). In an open
    loop each request has a random drafter.
    """
    generator = random.Random(seed)
    found = []
    for number in range(load.num_requests):
        index, owner = number % len(prompts), None
        if drafters and load.num_clients:
            owner = drafters[int((number % load.num_clients + 0.5) / load.num_clients * len(drafters))]
        elif drafters:
            owner = generator.choice(drafters)
        prompt = " ".join(prompts[(index + more) % len(prompts)] for more in range(load.num_joined))
        found.append(CaseRequest(index, prompt, owner, load.lengths[number % len(load.lengths)]))
    return found


async def send_in_turn(
    sender: RequestSender, requests: Sequence[CaseRequest], num_clients: int, started_at: float
) -> list[RequestSample]:
    """A closed loop: a client that has its answer sends the next request, with its own drafter.

    Samples are in the order of the requests.
    """
    samples: dict[int, RequestSample] = {}
    numbers = iter(range(len(requests)))

    async def client(drafter: str | None) -> None:
        for number in numbers:
            request = replace(requests[number], drafter=drafter)
            samples[number] = await sender.send(request, time.monotonic(), started_at)

    async with asyncio.TaskGroup() as tasks:
        for first in requests[:num_clients]:
            tasks.create_task(client(first.drafter))
    return [samples[number] for number in range(len(requests))]


async def send_at(
    sender: RequestSender, requests: Sequence[CaseRequest], times_s: Sequence[float], started_at: float
) -> list[RequestSample]:
    """An open loop: each request at its time after `started_at`."""

    async def one(request: CaseRequest, due_at: float) -> RequestSample:
        await asyncio.sleep(due_at - time.monotonic())
        return await sender.send(request, due_at, started_at)

    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(one(request, started_at + at_s)) for request, at_s in zip(requests, times_s, strict=True)
        ]
    return [task.result() for task in running]
