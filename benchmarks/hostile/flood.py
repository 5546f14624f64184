"""Hostile HTTP clients beside honest ones: every answer is looked at, and the honest texts and times are compared.

Invariant: a run ends. A hostile client that gets no whole answer within its patience leaves, as clients do. That is a
violation unless it asked for long work.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from benchmarks.harness.paired import compare
from benchmarks.hostile.answers import (
    MAX_SHOWN_BYTES,
    Answer,
    Violation,
    class_of,
    fault_of,
    is_long_work,
    violation,
)
from benchmarks.hostile.bodies import HostileBody, mutated, systematic
from benchmarks.hostile.honest import HonestClients
from benchmarks.hostile.records import Slowdown
from benchmarks.hostile.sockets import HostileConnection, attack, connections

PATIENCE_S = 20.0
KEPT_S = 0.25  # idle connections; the gateway closes its end later
LEFT = "client left"
JSON = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Flood:
    """What hostile clients got. counts: answers by their class. longest_silence_s: of a connection."""

    num_requests: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    refused: list[HostileBody] = field(default_factory=list)  # that got a 4xx
    longest_silence_s: float = 0.0

    def note(self, kind: str, found: Violation | None) -> None:
        self.num_requests += 1
        self.counts[kind] += 1
        if found is not None:
            self.violations.append(found)


def systematic_bodies(model: str, seed: int, num: int) -> list[HostileBody]:
    """Of `num` bodies those with one fault: all in random order, as far as they are no more than two thirds."""
    fixed = list(systematic(model))
    random.Random(seed).shuffle(fixed)
    return fixed[: 2 * num // 3]


def all_bodies(model: str, seed: int, num: int) -> list[HostileBody]:
    """`num` bodies: the systematic ones, then random changes."""
    fixed = systematic_bodies(model, seed, num)
    return [*fixed, *(mutated(model, seed, number) for number in range(num - len(fixed)))]


@asynccontextmanager
async def hostile_http(num_connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=num_connections, keepalive_timeout=KEPT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield http


async def send(
    http: aiohttp.ClientSession, url: str, body: HostileBody, flood: Flood, late: list[HostileBody] | None = None
) -> None:
    """Sends one body, and looks at the answer. late: takes it if no answer comes in time; None: that is a violation."""
    try:
        async with http.post(url + body.path, data=body.raw, headers=JSON) as response:
            answer = Answer(response.status, response.headers.get("Content-Type", ""), await response.read())
    except TimeoutError:
        found = None
        if not is_long_work(body):
            if late is None:
                found = violation(f"no answer within {PATIENCE_S:g} s", body, None)
            else:
                late.append(body)
        flood.note(LEFT, found)
        return
    except aiohttp.ClientError as error:
        flood.note("no answer", violation(f"no answer: {error!r}", body, None))
        return
    if 400 <= answer.status < 500:
        flood.refused.append(body)
    fault = fault_of(body, answer)
    flood.note(class_of(answer), None if fault is None else violation(fault, body, answer))


async def send_all(url: str, bodies: Iterable[HostileBody], num_clients: int, flood: Flood) -> None:
    """Clients that share the bodies, each sending one after the other. What is not answered beside the work of the
    others is sent again alone."""
    waiting, late = iter(bodies), list[HostileBody]()

    async def client() -> None:
        for body in waiting:
            await send(http, url, body, flood, late)

    async with hostile_http(num_clients) as http:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_clients):
                tasks.create_task(client())
        for body in late:
            await send(http, url, body, flood)


async def attack_all(
    url: str, wanted: Iterable[HostileConnection], num_at_once: int, timeout_s: float, flood: Flood
) -> None:
    """Opens hostile connections, so many at once. timeout_s: the gateway's."""
    waiting = iter(wanted)

    async def client() -> None:
        for connection in waiting:
            outcome = await attack(url, connection, timeout_s)
            flood.longest_silence_s = max(flood.longest_silence_s, outcome.silence_s)
            found = None
            if outcome.fault is not None:
                shown = f"{connection.name}: {connection.raw[:MAX_SHOWN_BYTES]!r}"
                found = Violation(outcome.fault, shown, outcome.kind)
            flood.note(outcome.kind, found)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_at_once):
            tasks.create_task(client())


def all_connections(model: str, repeats: int) -> Iterator[HostileConnection]:
    return itertools.chain.from_iterable(connections(model) for _ in range(repeats))


async def measure_slowdown(
    url: str,
    honest: HonestClients,
    bodies: Iterable[HostileBody],
    rate: float,
    num_rounds: int,
    flood: Flood,
    seed: int,
) -> Slowdown:
    """Honest clients in every round without and with hostile requests, in random order.

    All prompts are asked at once. The first round is a warm-up and does not count.
    """
    order, waiting, loop = random.Random(seed), itertools.cycle(bodies), asyncio.get_running_loop()
    rounds: list[dict[bool, list[float]]] = []  # TPOT of each prompt, by whether hostile requests came
    num_before, fire_s = flood.num_requests, 0.0

    async def one_round() -> list[float]:
        answers = await asyncio.gather(*(honest.compare(prompt) for prompt in honest.prompts))
        return [answer.tpot_ms for answer in answers if answer is not None]

    async with hostile_http(256) as http:
        for _ in range(num_rounds + 1):
            rounds.append({})
            for is_under_fire in order.sample((False, True), 2):
                began = loop.time()
                if is_under_fire:
                    async with _firing(http, url, waiting, rate, flood):
                        times = await one_round()
                    fire_s += loop.time() - began
                else:
                    times = await one_round()
                rounds[-1][is_under_fire] = times
    num_sent = flood.num_requests - num_before
    whole = [each for each in rounds[1:] if all(len(times) == len(honest.prompts) for times in each.values())]
    quiet, under_fire = ([each[which] for each in whole] for which in (False, True))
    ratio = compare(under_fire, quiet, seed=seed)
    return Slowdown(ratio, num_sent / fire_s, float(np.median(quiet)), len(whole))


@asynccontextmanager
async def _firing(
    http: aiohttp.ClientSession, url: str, bodies: Iterator[HostileBody], rate: float, flood: Flood
) -> AsyncIterator[None]:
    """Sends so many requests a second during the block, whether or not those before are answered."""

    async def fire() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                tasks.create_task(send(http, url, next(bodies), flood))
                due += 1 / rate
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await stop.wait()

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fire())
        try:
            yield
        finally:
            stop.set()
