"""Places and the line before them: who is served when, and that none is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.gateway.admission.slots import Closed, LineFull, Places, WaitedTooLong

LONG_S = 30.0


class Guest:
    """Somebody who wants places, holds them until told to go, and notes when it got them."""

    def __init__(self, places: Places, num: int, served: list[str], name: str, patience_s: float = LONG_S) -> None:
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(places, num, served, name, patience_s))

    async def _stay(self, places: Places, num: int, served: list[str], name: str, patience_s: float) -> None:
        async with places.taken(num, patience_s):
            served.append(name)
            await self._leave.wait()

    async def go(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def all_come_back(places: Places) -> AsyncIterator[None]:
    """In the end all places are free and nobody waits."""
    yield
    async with asyncio.timeout(5):
        await places.wait_idle()
        async with places.taken(places.capacity, LONG_S):
            assert places.num_waiting == 0


async def test_who_comes_first_is_served_first_whatever_it_asks_for() -> None:
    places, served = Places(2, 10), []
    async with all_come_back(places):
        first = [Guest(places, 1, served, "a"), Guest(places, 1, served, "b")]
        await settle()
        pair = Guest(places, 2, served, "pair")
        await settle()
        small = Guest(places, 1, served, "small")
        await settle()
        assert (served, places.num_waiting) == (["a", "b"], 2)
        await first[0].go()
        await settle()
        late = Guest(places, 1, served, "late")
        await settle()
        assert served == ["a", "b"], "neither the small one nor one that comes now passes the pair by"
        await first[1].go()
        await settle()
        assert served == ["a", "b", "pair"]
        await pair.go()
        await small.go()
        await late.go()
        assert served[-2:] == ["small", "late"]


async def test_a_full_line_refuses_and_a_short_patience_ends() -> None:
    places, served = Places(1, 1), []
    async with all_come_back(places):
        holder = Guest(places, 1, served, "holder")
        await settle()
        waiting = Guest(places, 1, served, "waiting", patience_s=0.01)
        await settle()
        with pytest.raises(LineFull):
            async with places.taken(1, LONG_S):
                pass
        with pytest.raises(WaitedTooLong):
            await waiting.task
        assert (served, places.num_waiting) == (["holder"], 0)
        await holder.go()


async def test_when_the_first_in_line_gives_up_those_behind_it_are_served() -> None:
    places, served = Places(2, 10), []
    async with all_come_back(places):
        holder = Guest(places, 1, served, "holder")
        await settle()
        pair = Guest(places, 2, served, "pair")
        await settle()
        small = Guest(places, 1, served, "small")
        await settle()
        pair.task.cancel()
        await settle()
        assert served == ["holder", "small"]
        await small.go()
        await holder.go()


async def test_a_place_given_to_somebody_who_is_just_being_cancelled_is_not_lost() -> None:
    places, served = Places(1, 10), []
    for cancelled_first in (True, False):
        async with all_come_back(places):
            async with places.taken(1, LONG_S):
                unlucky = Guest(places, 1, served, "unlucky")
                await settle()
                if cancelled_first:
                    unlucky.task.cancel()
            if not cancelled_first:
                assert places.num_waiting == 0, "it was given the place and does not know yet"
                unlucky.task.cancel()
            await asyncio.gather(unlucky.task, return_exceptions=True)
    assert served == []


async def test_closing_sends_those_in_line_away_and_lets_the_others_finish() -> None:
    places, served = Places(1, 10), []
    holder = Guest(places, 1, served, "holder")
    await settle()
    waiting = Guest(places, 1, served, "waiting")
    await settle()
    places.close()
    with pytest.raises(Closed):
        await waiting.task
    with pytest.raises(Closed):
        async with places.taken(1, LONG_S):
            pass
    await holder.go()
    await places.wait_idle()


async def test_it_is_not_idle_while_a_place_goes_from_one_to_the_next() -> None:
    places, served = Places(1, 10), []
    holder = Guest(places, 1, served, "holder")
    await settle()
    next_one = Guest(places, 1, served, "next")
    idle = asyncio.create_task(places.wait_idle())
    await settle()
    await holder.go()
    await settle()
    assert not idle.done()
    await next_one.go()
    async with asyncio.timeout(5):
        await idle


async def test_more_places_than_there_are_are_an_error() -> None:
    with pytest.raises(ValueError, match="3"):
        async with Places(2, 1).taken(3, LONG_S):
            pass


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_or_given_twice_whoever_comes_goes_or_is_cancelled(seed: int) -> None:
    rng, places, held = random.Random(seed), Places(5, 8), 0

    async def visit(num: int, patience_s: float, stay: int) -> None:
        nonlocal held
        async with places.taken(num, patience_s):
            held += num
            assert held <= places.capacity
            try:
                for _ in range(stay):
                    await asyncio.sleep(0)
            finally:
                held -= num

    async with all_come_back(places):
        tasks = []
        for _ in range(400):
            patience_s = rng.choice([0.0, 0.001, LONG_S])
            tasks.append(asyncio.create_task(visit(rng.randint(1, 5), patience_s, rng.randint(0, 6))))
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), LineFull, WaitedTooLong, asyncio.CancelledError}
    assert held == 0
