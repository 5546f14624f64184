"""Several controllers and the drafters that choose among them, on one network."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from services.edge_drafter.steering import WARM_UP_REPORTS, Steering
from services.window_controller.reloads import Reloads
from services.window_controller.service import WindowController
from services.window_controller.settings import ControllerSettings
from shared.bus.bus import Absent, Bus
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Heartbeat, Message, Report, WindowDecision
from shared.protocol.subjects import all_broadcasts, inbox, new_instance_id, sender, to
from shared.runtime.health import Health
from shared.service import Context
from tests.controller.outside import Outside, report
from tests.peers import until

NUM_DRAFTERS, NUM_CONTROLLERS = 40, 4
SETTINGS = ControllerSettings(window_policy="static", heartbeat_s=0.5, announce_s=0.1)


@dataclass
class SteeredDrafter:
    """What a drafter does for its windows: it names controllers in its reports, and follows one of them."""

    bus: Bus
    drafter_id: str
    sequence: int = 0
    told_by: str | None = None

    def __post_init__(self) -> None:
        self.steering = Steering(self.drafter_id, ttl_ms=1e4)
        self.controllers: set[str] = set()

    async def listen(self) -> None:
        await self.bus.subscribe(inbox("drafter", self.drafter_id), self._hear)
        await self.bus.subscribe(all_broadcasts(Heartbeat, "controller"), self._hear)

    def _hear(self, subject: str, message: Message | Absent) -> None:
        now = asyncio.get_running_loop().time() * 1e3
        if isinstance(message, Heartbeat):
            self.controllers.add(message.instance_id)
            self.steering.on_heartbeat(message, now)
        elif isinstance(message, WindowDecision):
            self.told_by = sender(subject) if self.steering.decide(message, sender(subject), now) else self.told_by

    async def report(self) -> None:
        self.sequence += 1
        named = self.steering.named(asyncio.get_running_loop().time() * 1e3)
        message = replace(report(self.sequence, drafter_id=self.drafter_id), controllers=named)
        for controller_id in named:
            await self.bus.publish(to("controller", controller_id, Report, self.drafter_id), message)


@asynccontextmanager
async def controller_on(network: MemoryNetwork) -> AsyncIterator[CollectorRegistry]:
    """A running controller; its metrics. Drains at the end."""
    registry = CollectorRegistry()
    context = Context(new_instance_id("controller"), network.connect(), registry, Health(CollectorRegistry()))
    controller = await WindowController.start(SETTINGS, context, Reloads(lambda: SETTINGS))
    task = asyncio.create_task(controller.run())
    try:
        yield registry
    finally:
        await controller.drain()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_controllers_share_the_drafters_and_the_others_take_over_those_of_one_that_leaves() -> None:
    network = MemoryNetwork(seed=1)
    verifier = Outside(network.connect())
    drafters = [SteeredDrafter(network.connect(), new_instance_id(f"edge-{number}")) for number in range(NUM_DRAFTERS)]
    for drafter in drafters:
        await drafter.listen()

    async def reported(num: int) -> None:
        """So many rounds of reports, and the decisions on them."""
        for drafter in num * drafters:
            await drafter.report()
        await verifier.send_heartbeat()
        for drafter in drafters:
            drafter.told_by = None
        await until(lambda: all(drafter.told_by for drafter in drafters))

    def shares(name: str) -> list[float]:
        return [registry.get_sample_value(f"dsd_controller_{name}") or 0.0 for registry in registries]

    async with AsyncExitStack() as stack:
        leaving = AsyncExitStack()
        registries = [await leaving.enter_async_context(controller_on(network))]
        registries += [await stack.enter_async_context(controller_on(network)) for _ in range(NUM_CONTROLLERS - 1)]
        await verifier.send_heartbeat()
        await until(lambda: all(len(drafter.controllers) == NUM_CONTROLLERS for drafter in drafters))
        await reported(WARM_UP_REPORTS + 1)
        await until(lambda: (sum(shares("pairs")), sum(shares("led_pairs"))) == (2 * NUM_DRAFTERS, NUM_DRAFTERS))
        led_by = Counter(drafter.told_by for drafter in drafters)
        assert sorted(led_by.values()) == sorted(shares("led_pairs"))
        assert min(led_by.values()) >= NUM_DRAFTERS / NUM_CONTROLLERS / 3

        await leaving.aclose()
        del registries[0]
        await reported(1)
        assert {drafter.told_by for drafter in drafters} < set(led_by)
        await until(lambda: (sum(shares("pairs")), sum(shares("led_pairs"))) == (2 * NUM_DRAFTERS, NUM_DRAFTERS))
