"""A drafter with a fake draft model on any network; the test controls its verifier, gateway and controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.service import Drafter
from services.edge_drafter.settings import DrafterSettings
from services.edge_drafter.traces import DrafterTraces
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import (
    Draft,
    Echo,
    Failure,
    Finish,
    Heartbeat,
    Message,
    Report,
    Sampling,
    Service,
    Speculate,
    Speculation,
    Tally,
    TokenIds,
    Verdict,
    WindowDecision,
)
from shared.runtime.tracing import NO_TRACING, Tracing
from tests.fakes import FakeDraft, answer
from tests.peers import Peer
from tests.plugins.networks import Network

PROMPT = (5, 6, 7)
TEXT = answer(PROMPT, 40)
ADAPTIVE, GREEDY = Speculation(), Sampling()


@dataclass
class World:
    """A drafter and its peers."""

    network: Network
    drafter: Drafter
    model: FakeDraft
    registry: CollectorRegistry
    outside: Bus
    gateway: Peer
    verifier: Peer
    controller: Peer

    async def meet(self, service: Service, name: str) -> Peer:
        """A further peer that listens."""
        peer = Peer(self.outside, service, name)
        await peer.listen()
        return peer

    async def tell(self, peer: Peer, message: Message, verb: str = "") -> None:
        await peer.say("drafter", self.drafter.instance_id, message, verb)

    async def quick_link(self) -> Speculate:
        """A session that has measured a round trip near 0, so that its timeouts are short."""
        request = await self.speculate()
        poll = await self.verifier.find(Draft)
        await self.tell(self.verifier, self.verdict(request, 0, (), echo=Echo(poll.sent_ms, 0.0)))
        return request

    async def speculate(
        self,
        prompt: Sequence[int] = PROMPT,
        max_tokens: int = 40,
        *,
        session_id: str = "",
        term: int = 1,
        committed: Sequence[int] = (),
        speculation: Speculation = ADAPTIVE,
        sampling: Sampling = GREEDY,
        stop_ids: Sequence[int] = (),
        min_tokens: int = 0,
        cache_scope: str | None = None,
        traceparent: str | None = None,
        verifier: Peer | None = None,
        sender: Peer | None = None,
    ) -> Speculate:
        """Asks the drafter for guesses."""
        request = Speculate(
            session_id or subjects.new_session_id(),
            term,
            (verifier or self.verifier).instance_id,
            TokenIds(prompt),
            TokenIds(committed),
            sampling,
            TokenIds(stop_ids),
            max_tokens,
            speculation,
            min_tokens,
            cache_scope,
            traceparent=traceparent,
        )
        await self.tell(sender or self.gateway, request)
        return request

    async def drafted(self, request: Speculate, base: int, num: int, *, epoch: int = 0) -> list[int]:
        """Waits for the first `num` guesses for the positions `base`, ... after the prompt."""
        first = len(request.prompt_ids) + base
        while True:
            have: dict[int, int] = {}
            for draft in self.drafts(request):
                if draft.epoch == epoch:
                    have |= {draft.base + i: token for i, token in enumerate(draft.token_ids)}
            if all(first + i in have for i in range(num)):
                return [have[first + i] for i in range(num)]
            await self.verifier.next(Draft)

    def drafts(self, request: Speculate, verifier: Peer | None = None) -> list[Draft]:
        heard = (verifier or self.verifier).of(Draft)
        return [draft for draft in heard if (draft.session_id, draft.term) == (request.session_id, request.term)]

    def verdict(
        self,
        request: Speculate,
        base: int,
        ids: Sequence[int],
        *,
        accepted: int = 0,
        epoch: int = 0,
        finish: Finish | None = None,
        echo: Echo | None = None,
    ) -> Verdict:
        """Sends a verdict that commits `ids` at the positions `base`, ... after the prompt."""
        return Verdict(
            session_id=request.session_id,
            term=request.term,
            epoch=epoch,
            base=len(request.prompt_ids) + base,
            token_ids=TokenIds(ids),
            accepted=accepted,
            finish=finish,
            echo=echo,
            compute_ms=1.0,
            batch=1,
            queue=0.25,
            tally=Tally(),
        )

    async def decide(
        self,
        window: int,
        chunk: int = 2,
        free_run: bool = True,
        sequence: int = 1,
        sender: Peer | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        decision = WindowDecision(
            self.drafter.instance_id,
            self.verifier.instance_id,
            window,
            chunk,
            free_run,
            "test",
            sequence,
            min_confidence,
        )
        await self.tell(sender or self.controller, decision)

    async def settled(self) -> None:
        """Returns when the drafter has handled all earlier messages: it refuses an empty prompt."""
        asked = await self.speculate(prompt=())
        await self.gateway.find(Failure, lambda failure: failure.session_id == asked.session_id)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_{name}_total", labels) or 0.0

    def dropped(self, reason: str) -> float:
        return self.count("drafter_dropped_messages", reason=reason)

    def fates(self) -> dict[str, float]:
        """The fates of all guesses in the metrics."""
        fates = ("accepted", "rejected", "late", "discarded")
        return {fate: self.count("drafter_guesses", fate=fate) for fate in fates}

    def check_sums(self) -> None:
        """Checks that each guess has one fate, in each session and, after all sessions, in the metrics."""
        for slot in self.drafter.table:
            assert slot.state.drafted == slot.state.fates.total + slot.state.num_guesses
        if not len(self.drafter.table):
            assert self.count("drafter_drafted_tokens") == sum(self.fates().values())


Start = Callable[..., AbstractAsyncContextManager[World]]


@asynccontextmanager
async def running(network: Network, tracing: Tracing = NO_TRACING, **settings: object) -> AsyncIterator[World]:
    slow = {"name": "edge", "draft": "fake", "heartbeat_s": 20.0, "report_s": 60.0}
    chosen = DrafterSettings(**slow | settings)
    registry, model = CollectorRegistry(), FakeDraft()
    instance_id, bus = subjects.new_instance_id(chosen.name), await network.join(registry)
    drafter = Drafter(instance_id, chosen, model, bus, DrafterMetrics(registry), DrafterTraces(tracing))
    outside = await network.join(CollectorRegistry())  # one for all, so that they are heard in their order
    gateway, verifier = Peer(outside, "gateway", "gateway"), Peer(outside, "verifier", "cloud")
    controller = Peer(outside, "controller", "controller")
    for peer in (gateway, verifier, controller):
        await peer.listen()
    await gateway.listen_to_all(Heartbeat, "drafter")
    world = World(network, drafter, model, registry, outside, gateway, verifier, controller)
    task = asyncio.create_task(drafter.run())
    try:
        await gateway.next(Heartbeat)  # it listens
        yield world
        assert not task.done(), "the drafter ended"
        world.check_sums()
    finally:
        model.gate.open()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def start(network: Network) -> Start:
    """start(**settings): a running drafter and its peers."""
    return lambda **settings: running(network, **settings)


@pytest.fixture
async def world(network: Network) -> AsyncIterator[World]:
    async with running(network) as world:
        yield world


def reported(world: World) -> list[Report]:
    return world.controller.of(Report)
