"""A verifier with a fake target on any network, and a gateway and two drafters that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.traces import VerifierTraces
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import (
    Draft,
    Failure,
    Heartbeat,
    Message,
    Open,
    Opened,
    Poll,
    Sampling,
    Service,
    TokenIds,
    Verdict,
)
from shared.runtime.tracing import NO_TRACING, Tracing
from tests.fakes import FakeTarget, fake_engine
from tests.peers import Peer
from tests.plugins.networks import Network

PROMPT = (5, 6, 7)


@dataclass
class World:
    """A verifier and its peers."""

    network: Network
    verifier: Verifier
    running: asyncio.Task[None]
    model: FakeTarget
    registry: CollectorRegistry
    outside: Bus
    gateway: Peer
    drafter: Peer
    stranger: Peer

    async def meet(self, service: Service, name: str) -> Peer:
        """Adds a peer that listens."""
        peer = Peer(self.outside, service, name)
        await peer.listen()
        return peer

    async def send(self, peer: Peer, message: Message, verb: str = "") -> None:
        await peer.say("verifier", self.verifier.instance_id, message, verb)

    async def open(
        self,
        prompt: Sequence[int] = PROMPT,
        max_tokens: int = 12,
        *,
        session_id: str = "",
        term: int = 1,
        drafted: bool = True,
        free_run: bool = True,
        seed: int = 0,
        stop_ids: Sequence[int] = (),
        committed: Sequence[int] = (),
        logprobs: int | None = None,
        traceparent: str | None = None,
    ) -> Open:
        """Opens a session and waits for Opened."""
        request = Open(
            session_id or subjects.new_session_id(),
            term,
            self.drafter.instance_id if drafted else None,
            TokenIds(prompt),
            TokenIds(committed),
            Sampling(seed=seed),
            TokenIds(stop_ids),
            max_tokens,
            free_run,
            logprobs=logprobs,
            traceparent=traceparent,
        )
        await self.send(self.gateway, request)
        await self.gateway.find(Opened, lambda opened: (opened.session_id, opened.term) == (request.session_id, term))
        return request

    async def draft(
        self, request: Open, base: int, ids: Sequence[int], *, epoch: int = 0, term: int = 1, sender: Peer | None = None
    ) -> None:
        """Sends guesses for positions from `base` on, counted from the end of the prompt."""
        position = len(request.prompt_ids) + base
        draft = Draft(request.session_id, term, epoch, position, TokenIds(ids), request.free_run, 1.0)
        await self.send(sender or self.drafter, draft)

    async def text(self, request: Open) -> list[int]:
        """The whole answer that the gateway has received when the session finishes."""
        await self.finish(request)
        return self.text_received(request)

    async def finish(self, request: Open) -> Verdict:
        """The verdict that ends the session."""
        return await self.gateway.find(
            Verdict, lambda last: last.session_id == request.session_id and bool(last.finish)
        )

    def text_received(self, request: Open) -> list[int]:
        text: list[int] = []
        for verdict in self.gateway.of(Verdict):
            if verdict.session_id == request.session_id:
                have = len(request.prompt_ids) + len(text)
                assert verdict.base <= have, "a gap"
                text += verdict.token_ids[have - verdict.base :]
        return text

    async def settled(self) -> None:
        """Waits until the verifier has handled all earlier messages."""
        ask = Poll(subjects.new_session_id(), 1, 0)
        await self.send(self.gateway, ask)
        await self.gateway.find(Failure, lambda failure: failure.session_id == ask.session_id)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_{name}_total", labels) or 0.0

    def dropped(self, reason: str) -> float:
        return self.count("verifier_dropped_messages", reason=reason)

    def fates(self) -> dict[str, float]:
        """The fates of all guesses, by the metrics."""
        fates = ("accepted", "rejected", "late", "discarded")
        return {fate: self.count("verifier_guesses", fate=fate) for fate in fates}


Start = Callable[..., AbstractAsyncContextManager[World]]


@asynccontextmanager
async def running(network: Network, tracing: Tracing = NO_TRACING, **settings: object) -> AsyncIterator[World]:
    chosen = VerifierSettings(**{"name": "cloud", "target": "fake", "heartbeat_s": 20.0, **settings})
    registry, model = CollectorRegistry(), FakeTarget()
    instance_id, bus = subjects.new_instance_id(chosen.name), await network.join(registry)
    engine, metrics = fake_engine(model, chosen.kv_tokens), VerifierMetrics(registry)
    verifier = Verifier(instance_id, chosen, engine, bus, metrics, VerifierTraces(tracing))
    outside = await network.join(CollectorRegistry())  # one for all peers keeps the order of their messages
    gateway, drafter = Peer(outside, "gateway", "gateway"), Peer(outside, "drafter", "edge")
    stranger = Peer(outside, "drafter", "stranger")
    for peer in (gateway, drafter, stranger):
        await peer.listen()
    await gateway.listen_to_all(Heartbeat, "verifier")
    task = asyncio.create_task(verifier.run())
    world = World(network, verifier, task, model, registry, outside, gateway, drafter, stranger)
    try:
        await gateway.next(Heartbeat)  # the verifier listens
        yield world
        assert not task.done(), "the verifier ended"
    finally:
        model.gate.open()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def start(network: Network) -> Start:
    """Call it with settings: a running verifier and its peers."""
    return lambda **settings: running(network, **settings)


@pytest.fixture
async def world(network: Network) -> AsyncIterator[World]:
    async with running(network) as world:
        yield world
