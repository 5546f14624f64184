"""The faults that a MemoryNetwork makes; what it does without them is in test_bus.py."""

from __future__ import annotations

import asyncio

import pytest

from shared.bus.bus import Absent
from shared.bus.memory_bus import NO_FAULTS, Faults, MemoryBus, MemoryNetwork
from shared.protocol.messages import MAX_TOKENS, Close, Draft
from tests.shared.bus.bus_helpers import (
    ABSENT_TO,
    DRAFTS,
    GATEWAY_INBOX,
    INBOX,
    OPENED,
    OPENS,
    SESSION,
    Heard,
    draft,
    prompt,
)


class World:
    """A drafter and a verifier that listens, on one network."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.drafter: MemoryBus = network.connect()
        self.verifier: MemoryBus = network.connect()
        self.heard = Heard()

    async def send(self, number: int) -> list[int]:
        """The bases that arrive of so many drafts, and an end that no fault touches."""
        await self.verifier.subscribe(INBOX, self.heard)
        for base in range(number):
            await self.drafter.publish(DRAFTS, draft(base))
        await asyncio.sleep(2 * self.network.faults.hold_s)
        self.network.faults = NO_FAULTS
        await self.drafter.publish(DRAFTS, Close(SESSION, 1))
        async with asyncio.timeout(10):
            while Close(SESSION, 1) not in self.heard.messages:
                await self.heard.wait_for(len(self.heard.all) + 1)
        return [message.base for message in self.heard.messages if isinstance(message, Draft)]


async def bases_under(faults: Faults, number: int = 300, seed: int = 7) -> list[int]:
    return await World(MemoryNetwork(seed, faults)).send(number)


async def test_loss_takes_its_share() -> None:
    arrived = await bases_under(Faults(loss=0.3))
    assert arrived == sorted(set(arrived))
    assert 0.55 * 300 < len(arrived) < 0.85 * 300


async def test_duplication_delivers_twice() -> None:
    arrived = await bases_under(Faults(duplication=0.3))
    assert sorted(set(arrived)) == list(range(300))
    assert 1.15 * 300 < len(arrived) < 1.45 * 300
    assert max(arrived.count(base) for base in arrived) == 2


async def test_reordering_loses_and_repeats_nothing() -> None:
    arrived = await bases_under(Faults(reordering=0.3, hold_s=0.05))
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(300))


async def test_delay_keeps_the_order() -> None:
    world = World(MemoryNetwork(7, Faults(delay_s=0.02)))
    await world.verifier.subscribe(INBOX, world.heard)
    started = asyncio.get_running_loop().time()
    for base in range(300):
        await world.drafter.publish(DRAFTS, draft(base))
    assert await world.heard.wait_for(300) == [draft(base) for base in range(300)]
    assert asyncio.get_running_loop().time() - started >= 0.02


async def test_packets_of_one_instant_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(MemoryNetwork())
    await world.verifier.subscribe(INBOX, world.heard)
    loop = asyncio.get_running_loop()
    now = loop.time()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now)
        for base in range(100):
            await world.drafter.publish(DRAFTS, draft(base))
    assert await world.heard.wait_for(100) == [draft(base) for base in range(100)]


async def test_the_seed_decides_and_another_decides_otherwise() -> None:
    faults = Faults(loss=0.3, duplication=0.3)
    assert await bases_under(faults, seed=1) == await bases_under(faults, seed=1)
    assert await bases_under(faults, seed=1) != await bases_under(faults, seed=2)


async def test_one_kind_of_fault_does_not_shift_the_fates_of_another() -> None:
    lossy, lossy_and_more = await bases_under(Faults(loss=0.3)), await bases_under(Faults(loss=0.3, duplication=0.5))
    assert lossy == sorted(set(lossy_and_more))


async def test_a_lost_part_costs_its_message_and_no_other() -> None:
    world = World(MemoryNetwork(7))
    await world.verifier.subscribe(INBOX, world.heard)
    world.network.faults = Faults(loss=0.5)
    await world.drafter.publish(OPENS, prompt(MAX_TOKENS))
    world.network.faults = NO_FAULTS
    await world.drafter.publish(OPENS, prompt(MAX_TOKENS // 2))
    assert await world.heard.wait_for(1) == [prompt(MAX_TOKENS // 2)]


async def test_parts_arrive_whole_under_duplication_and_reordering() -> None:
    world = World(MemoryNetwork(7, Faults(duplication=0.5, reordering=0.5)))
    await world.verifier.subscribe(INBOX, world.heard)
    await world.drafter.publish(OPENS, prompt(MAX_TOKENS))
    assert (await world.heard.wait_for(1))[0] == prompt(MAX_TOKENS)


async def test_a_cut_subject_is_lost_until_mended_and_others_are_not() -> None:
    world = World(MemoryNetwork())
    await world.verifier.subscribe(INBOX, world.heard)
    world.network.cut(DRAFTS)
    await world.drafter.publish(DRAFTS, draft(1))
    await world.drafter.publish(OPENS, draft(2))
    world.network.mend(DRAFTS)
    await world.drafter.publish(DRAFTS, draft(3))
    assert await world.heard.wait_for(2) == [draft(2), draft(3)]


@pytest.mark.parametrize("side", ["drafter", "verifier"])
async def test_an_isolated_member_neither_speaks_nor_hears_and_is_not_found_absent(side: str) -> None:
    world, told = World(MemoryNetwork()), Heard()
    await world.verifier.subscribe(INBOX, world.heard)
    await world.drafter.subscribe(GATEWAY_INBOX, told)
    member: MemoryBus = getattr(world, side)
    world.network.isolate(member)
    await world.drafter.publish(DRAFTS, draft(1), absent_to=ABSENT_TO)
    await asyncio.sleep(0)
    world.network.rejoin(member)
    await world.drafter.publish(DRAFTS, draft(2))
    await world.drafter.publish(OPENED, draft(3))
    assert await world.heard.wait_for(1) == [draft(2)]
    assert await told.wait_for(1) == [draft(3)]


async def test_a_killed_member_is_found_absent_and_stays_silent() -> None:
    world, told = World(MemoryNetwork()), Heard()
    await world.verifier.subscribe(INBOX, world.heard)
    await world.drafter.subscribe(GATEWAY_INBOX, told)
    await world.drafter.publish(DRAFTS, draft(1))
    world.network.kill(world.verifier)
    await world.drafter.publish(DRAFTS, draft(2), absent_to=ABSENT_TO)
    await world.verifier.publish(OPENED, draft(3))
    await world.drafter.publish(OPENED, draft(4))
    assert await told.wait_for(2) == [Absent(), draft(4)]
    assert world.heard.all == []
