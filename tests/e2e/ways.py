"""Ways to get the same answers: windows, sliding or stop-and-wait, one session at a time or several."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shared.protocol.messages import Sampling
from tests.e2e.harness import Cell

NUM_TOKENS = 64
WINDOWS = (1, 3, 8, 16)
SAMPLINGS = (Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=20))


@dataclass(frozen=True)
class Way:
    """One way to get the same texts. Window 0: the verifier alone. Stop-and-wait: chunk = window, no free run.
    looks_up: the verifier guesses, too."""

    window: int
    stop_and_wait: bool = False
    num_at_once: int = 1
    looks_up: bool = False


ALONE = Way(0)
LOOKING_UP = [Way(0, looks_up=True), Way(0, num_at_once=8, looks_up=True), Way(8, num_at_once=8, looks_up=True)]
SLIDING = [Way(window, num_at_once=num_at_once) for window in WINDOWS for num_at_once in (1, 8)]
# With 8 sessions on one drafter a verifier that runs free is ahead of nearly every guess; here it waits for each.
STOP_AND_WAIT = [Way(window, stop_and_wait=True, num_at_once=8) for window in WINDOWS]
Request: TypeAlias = tuple[list[int], Sampling]  # a prompt, and how its answer is drawn


async def texts(
    cell: Cell, prompts: Sequence[list[int]], sampling: Sampling, stop_ids: Sequence[int], way: Way
) -> tuple[list[list[int]], int]:
    """The answers to all prompts, and how many guesses were right (`answers`)."""
    return await answers(cell, [(prompt, sampling) for prompt in prompts], stop_ids, way)


async def answers(
    cell: Cell, requests: Sequence[Request], stop_ids: Sequence[int], way: Way
) -> tuple[list[list[int]], int]:
    """The answers to requests, `way.num_at_once` in flight, and how many guesses were right: the verifier's own where
    it looks up, else the drafter's that came in time."""
    seats = asyncio.Semaphore(way.num_at_once)
    chunk = way.window if way.stop_and_wait else min(2, way.window)
    if way.window:
        drafter_id, verifier_id = cell.drafter_id(), cell.verifier_id()
        await cell.client.decide(drafter_id, verifier_id, way.window, chunk, not way.stop_and_wait)

    async def one(prompt: list[int], sampling: Sampling) -> tuple[list[int], int]:
        async with seats:
            answer = await cell.client.generate(
                prompt,
                verifier_id=cell.verifier_id(),
                drafter_id=cell.drafter_id() if way.window else None,
                sampling=sampling,
                max_tokens=NUM_TOKENS,
                stop_ids=stop_ids,
                free_run=not way.stop_and_wait,
                lookup=way.looks_up,
            )
            return answer.token_ids, answer.tally.looked_up if way.looks_up else answer.tally.accepted

    results = await asyncio.gather(*(one(*request) for request in requests))
    return [ids for ids, _ in results], sum(num_right for _, num_right in results)
