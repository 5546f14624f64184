"""Slots and the queue for them: the order of service, and that no slot is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.gateway.admission.slots import AdmissionSlots, QueueClosed, QueueFull, QueueTimeout

LONG_S = 30.0


class Guest:
    """A request that takes slots, notes that it got them, and holds them until `go`."""

    def __init__(
        self, slots: AdmissionSlots, num: int, served: list[str], name: str, patience_s: float = LONG_S
    ) -> None:
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(slots, num, served, name, patience_s))

    async def _stay(self, slots: AdmissionSlots, num: int, served: list[str], name: str, patience_s: float) -> None:
        async with slots.taken(num, patience_s):
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
async def all_come_back(slots: AdmissionSlots) -> AsyncIterator[None]:
    """In the end all slots are free and no request waits."""
    yield
    async with asyncio.timeout(5):
        await slots.wait_idle()
        async with slots.taken(slots.capacity, LONG_S):
            assert slots.num_waiting == 0


async def test_who_comes_first_is_served_first_whatever_it_asks_for() -> None:
    slots, served = AdmissionSlots(2, 10), []
    async with all_come_back(slots):
        first = [Guest(slots, 1, served, "a"), Guest(slots, 1, served, "b")]
        await settle()
        pair = Guest(slots, 2, served, "pair")
        await settle()
        small = Guest(slots, 1, served, "small")
        await settle()
        assert (served, slots.num_waiting) == (["a", "b"], 2)
        await first[0].go()
        await settle()
        late = Guest(slots, 1, served, "late")
        await settle()
        assert served == ["a", "b"], "neither the small one nor one that comes now passes the pair by"
        await first[1].go()
        await settle()
        assert served == ["a", "b", "pair"]
        await pair.go()
        await small.go()
        await late.go()
        assert served[-2:] == ["small", "late"]


async def test_a_full_queue_refuses_and_a_short_patience_ends() -> None:
    slots, served = AdmissionSlots(1, 1), []
    async with all_come_back(slots):
        holder = Guest(slots, 1, served, "holder")
        await settle()
        waiting = Guest(slots, 1, served, "waiting", patience_s=0.01)
        await settle()
        with pytest.raises(QueueFull):
            async with slots.taken(1, LONG_S):
                pass
        with pytest.raises(QueueTimeout):
            await waiting.task
        assert (served, slots.num_waiting) == (["holder"], 0)
        await holder.go()


async def test_when_the_first_in_the_queue_gives_up_those_behind_it_are_served() -> None:
    slots, served = AdmissionSlots(2, 10), []
    async with all_come_back(slots):
        holder = Guest(slots, 1, served, "holder")
        await settle()
        pair = Guest(slots, 2, served, "pair")
        await settle()
        small = Guest(slots, 1, served, "small")
        await settle()
        pair.task.cancel()
        await settle()
        assert served == ["holder", "small"]
        await small.go()
        await holder.go()


async def test_a_slot_given_to_a_request_that_is_being_cancelled_is_not_lost() -> None:
    slots, served = AdmissionSlots(1, 10), []
    for cancelled_first in (True, False):
        async with all_come_back(slots):
            async with slots.taken(1, LONG_S):
                unlucky = Guest(slots, 1, served, "unlucky")
                await settle()
                if cancelled_first:
                    unlucky.task.cancel()
            if not cancelled_first:
                assert slots.num_waiting == 0, "it has the slot and does not know yet"
                unlucky.task.cancel()
            await asyncio.gather(unlucky.task, return_exceptions=True)
    assert served == []


async def test_closing_refuses_those_in_the_queue_and_lets_the_others_finish() -> None:
    slots, served = AdmissionSlots(1, 10), []
    holder = Guest(slots, 1, served, "holder")
    await settle()
    waiting = Guest(slots, 1, served, "waiting")
    await settle()
    slots.close()
    with pytest.raises(QueueClosed):
        await waiting.task
    with pytest.raises(QueueClosed):
        async with slots.taken(1, LONG_S):
            pass
    await holder.go()
    await slots.wait_idle()


async def test_it_is_not_idle_while_a_slot_goes_from_one_to_the_next() -> None:
    slots, served = AdmissionSlots(1, 10), []
    holder = Guest(slots, 1, served, "holder")
    await settle()
    next_one = Guest(slots, 1, served, "next")
    idle = asyncio.create_task(slots.wait_idle())
    await settle()
    await holder.go()
    await settle()
    assert not idle.done()
    await next_one.go()
    async with asyncio.timeout(5):
        await idle


async def test_more_slots_than_there_are_are_an_error() -> None:
    with pytest.raises(ValueError, match="3"):
        async with AdmissionSlots(2, 1).taken(3, LONG_S):
            pass


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_lost_or_given_twice_whoever_comes_goes_or_is_cancelled(seed: int) -> None:
    rng, slots, held = random.Random(seed), AdmissionSlots(5, 8), 0

    async def hold(num: int, patience_s: float, stay: int) -> None:
        nonlocal held
        async with slots.taken(num, patience_s):
            held += num
            assert held <= slots.capacity
            try:
                for _ in range(stay):
                    await asyncio.sleep(0)
            finally:
                held -= num

    async with all_come_back(slots):
        tasks = []
        for _ in range(400):
            patience_s = rng.choice([0.0, 0.001, LONG_S])
            tasks.append(asyncio.create_task(hold(rng.randint(1, 5), patience_s, rng.randint(0, 6))))
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {type(None), QueueFull, QueueTimeout, asyncio.CancelledError}
    assert held == 0
