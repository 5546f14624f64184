"""A scripted controller applies a choice or a policy from one answer to the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from awc.policies.ladder import LadderPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice, WindowPolicy
from benchmarks.harness.scripted_controller import ScriptedController
from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from shared.protocol import subjects
from shared.protocol.messages import PairReport, Report, Tally, WindowDecision
from tests.e2e.harness import Cell
from tests.e2e.harness import running as serving
from tests.fakes import FakeDraft, FakeTarget
from tests.peers import Peer, until
from tests.plugins.networks import Network

NUM_TOKENS = 40
STOP_AND_WAIT = [WindowChoice(window, window, free_run=False) for window in (1, 4, 1, 3)]


@asynccontextmanager
async def scripted_controller(network: Network) -> AsyncIterator[ScriptedController]:
    controller = ScriptedController(await network.join(CollectorRegistry()))
    work = asyncio.create_task(controller.run())
    try:
        yield controller
        assert not work.done()
    finally:
        work.cancel()
        await asyncio.wait({work})
        await controller.leave()


async def tally_of_answer(cell: Cell) -> Tally:
    answer = await cell.client.generate(
        (1, 2, 3),
        verifier_id=cell.verifier_id(),
        drafter_id=cell.drafter_id(),
        max_tokens=NUM_TOKENS,
        free_run=False,
    )
    return answer.tally


async def test_each_answer_has_the_window_chosen_before_it_by_the_controller_of_its_time(network: Network) -> None:
    buses = [await network.join(CollectorRegistry()) for _ in range(3)]
    target, draft = cast(TargetModel, FakeTarget(pass_s=0.001)), cast(DraftModel, FakeDraft())
    async with serving(buses.pop, [target], [draft]) as cell:
        await cell.verifiers[0].loop.warm_up()
        for choices in (STOP_AND_WAIT[:2], STOP_AND_WAIT[2:]):
            async with scripted_controller(network) as controller:
                for choice in choices:
                    await controller.choose(choice)
                    tally = await tally_of_answer(cell)
                    num_rounds = -(-NUM_TOKENS // (choice.window + 1))
                    assert tally.num_passes in (num_rounds, num_rounds + 1), choice  # the prompt may yield a token


async def test_a_named_policy_decides_on_reports_from_its_own_time(
    network: Network,
) -> None:
    bus = await network.join(CollectorRegistry())
    drafter = Peer(bus, "drafter", "d")
    verifier = Peer(await network.join(CollectorRegistry()), "verifier", "v")
    await drafter.listen()
    async with scripted_controller(network) as controller:
        choosing = asyncio.create_task(controller.choose(WindowChoice(3, 3, free_run=False)))
        while not choosing.done():
            await drafter.send_heartbeat()
            await verifier.send_heartbeat()
            await asyncio.wait({choosing}, timeout=0.05)
        forced = await drafter.find(WindowDecision, lambda decision: decision.window == 3)
        assert (forced.chunk, forced.free_run, forced.policy) == (3, False, "static")
        assert forced.verifier_id == verifier.instance_id
        for number in range(40):
            await bus.publish(*report(controller, drafter, verifier, number, draft_ms=10.0 + number))
        await until(lambda: controller.draft_ms == 49.0)
        await controller.choose(WindowChoice(2, 2, free_run=False))
        await controller.choose(LadderPolicy.name)
        first = await drafter.find(WindowDecision, lambda decision: decision.policy == LadderPolicy.name)
        assert (first.window, first.chunk) == (DEFAULT_CHOICE.window, DEFAULT_CHOICE.chunk)
        for number in range(40, 80):
            await bus.publish(*report(controller, drafter, verifier, number))
        later = await drafter.find(WindowDecision, lambda decision: decision.window > DEFAULT_CHOICE.window)
        assert later.policy == LadderPolicy.name
        await controller.choose(WindowChoice(3, 3, free_run=False))
        await controller.choose(LadderPolicy.name)
        newest = drafter.of(WindowDecision)[-1]
        assert newest.policy == LadderPolicy.name
        assert newest.window >= later.window
        numbers = [decision.sequence for decision in drafter.of(WindowDecision)]
        assert numbers == sorted(set(numbers))


class Watching:
    """A policy that keeps the reports that it gets."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[PairReport] = []

    def for_pair(self) -> Watching:
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        self.seen.append(seen)
        return DEFAULT_CHOICE


async def test_a_policy_sees_reports_as_the_window_controller_does(network: Network) -> None:
    drafter = Peer(await network.join(CollectorRegistry()), "drafter", "d")
    verifier = Peer(await network.join(CollectorRegistry()), "verifier", "v")
    bus, policy = await network.join(CollectorRegistry()), Watching()
    controller = ScriptedController(bus, policies={policy.name: lambda: cast(WindowPolicy, policy)})
    work = asyncio.create_task(controller.run())
    try:
        choosing = asyncio.create_task(controller.choose(policy.name))
        while not choosing.done():
            await drafter.send_heartbeat()
            await verifier.send_heartbeat(machine="here")
            await asyncio.wait({choosing}, timeout=0.05)
        for number, machine in enumerate(("here", "elsewhere")):
            subject, content = report(controller, drafter, verifier, number)
            await bus.publish(subject, replace(content, machine=machine))
        await until(lambda: len(policy.seen) == 2)
        assert [each.shares_machine for each in policy.seen] == [True, False]
    finally:
        work.cancel()
        await asyncio.wait({work})


async def test_every_pair_gets_the_choice_before_it_is_in_force(network: Network) -> None:
    drafters = [Peer(await network.join(CollectorRegistry()), "drafter", f"d-{number}") for number in range(2)]
    verifiers = [Peer(await network.join(CollectorRegistry()), "verifier", f"v-{number}") for number in range(2)]
    for drafter in drafters:
        await drafter.listen()
    controller = ScriptedController(await network.join(CollectorRegistry()), num_drafters=2, num_verifiers=2)
    work = asyncio.create_task(controller.run())
    choosing = asyncio.create_task(controller.choose(WindowChoice(3, 3, free_run=False)))
    try:
        await asyncio.wait({choosing}, timeout=0.05)
        for peer in (*drafters, *verifiers[:1]):
            await peer.send_heartbeat()
        await asyncio.wait({choosing}, timeout=0.2)
        assert not choosing.done(), "a verifier has not been heard of"
        while not choosing.done():
            for peer in (*drafters, *verifiers):
                await peer.send_heartbeat()
            await asyncio.wait({choosing}, timeout=0.05)
        await choosing
        for drafter in drafters:
            for verifier in verifiers:
                found = await drafter.find(WindowDecision, lambda each, v=verifier: each.verifier_id == v.instance_id)
                assert (found.drafter_id, found.window, found.chunk) == (drafter.instance_id, 3, 3)
    finally:
        work.cancel()
        await asyncio.wait({work})


def report(
    controller: ScriptedController, drafter: Peer, verifier: Peer, number: int, draft_ms: float = 10.0
) -> tuple[str, Report]:
    """A report with right guesses only, and its subject."""
    seen = PairReport(verifier.instance_id, 1, 8, 40, 40, 0, 0, 0, draft_ms, 1.0, 0.0, 20.0, 100)
    subject = subjects.to("controller", controller.instance_id, Report, drafter.instance_id)
    return subject, Report(drafter.instance_id, number, [seen], "", (controller.instance_id,))
