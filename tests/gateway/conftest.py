"""A gateway on an in-process bus with fake peers, served over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import limits.storage.memory
import pytest
from aiohttp.test_utils import TestClient, TestServer, get_port_socket
from prometheus_client import CollectorRegistry

from services.gateway.admission import rate_limits as quotas
from services.gateway.http.routes import make_app
from services.gateway.service import Gateway, formats_of, make_authenticator, make_routes
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import TokenIds
from shared.protocol.subjects import new_instance_id
from shared.runtime.health import Health
from shared.runtime.tracing import NO_TRACING, Tracing
from shared.service import Context
from tests.gateway.fakes import MODEL, FakeDrafter, FakeVerifier
from tests.gateway.tiny import make_folder, make_tokenizer

TOKENIZER = make_tokenizer()
EOS = 2
WAIT_S = 10.0


def ids_of(text: str) -> list[int]:
    return list(_ids(text))


@functools.cache  # fake peers ask for the same answer at every pass and guess
def _ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


async def until(holds: Callable[[], bool]) -> None:
    """Waits for a condition that other tasks bring about."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110  the condition may be about anything
            await asyncio.sleep(0.005)


@dataclass
class World:
    """Everything around one gateway under test."""

    network: MemoryNetwork
    gateway: Gateway
    client: TestClient
    registry: CollectorRegistry
    running: asyncio.Task[None]
    answer: str = "hello world, the quick brown fox 😀"
    peers: list[FakeVerifier | FakeDrafter] = field(default_factory=list)

    def script(self, prompt_ids: TokenIds) -> list[int]:
        """The target's answer: the same whatever the prompt, then the end of sequence."""
        return [*ids_of(self.answer), EOS]

    async def verifier(self, name: str = "verifier", pass_s: float = 0.002) -> FakeVerifier:
        verifier = FakeVerifier(self.network.connect(), self.script, name, pass_s)
        await self._add(verifier)
        return verifier

    async def drafter(self, name: str = "drafter", promised_s: float = 1.0) -> FakeDrafter:
        """promised_s: between heartbeats; the gateway misses them after three times as long."""
        drafter = FakeDrafter(self.network.connect(), self.script, name)
        drafter.promised_s = promised_s
        await self._add(drafter)
        return drafter

    async def _add(self, peer: FakeVerifier | FakeDrafter) -> None:
        self.peers.append(peer)
        await peer.start()
        await until(lambda: self.knows(peer))

    def knows(self, peer: FakeVerifier | FakeDrafter) -> bool:
        return self.gateway.sessions.fleet.is_alive(peer.instance_id, time.monotonic())

    async def no_session_is_left(self) -> None:
        """At the gateway and at the peers."""
        await until(lambda: not len(self.gateway.sessions) and not any(peer.sessions for peer in self.peers))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_gateway_{name}", labels) or 0.0


def narrow_socket(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    """A listening socket whose connections buffer little, so that a client that takes nothing is felt soon."""
    listening = get_port_socket(host, port, family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listening


class Clock:
    """The wall clock by which requests and tokens of a minute are counted; it stands still."""

    def __init__(self) -> None:
        self.now = 60.0 * int(time.time() / 60) + 6000.0  # a minute begins, and none of its counts is of the past

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits.storage.memory, "time", clock)
    monkeypatch.setattr(quotas, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "target")


@contextlib.asynccontextmanager
async def a_world(folder: Path, tracing: Tracing = NO_TRACING, **changes: object) -> AsyncIterator[World]:
    settings = GatewaySettings(
        target=str(folder),
        model_name=MODEL,
        **{"heartbeat_s": 0.05, "poll_after_s": 0.1, "open_timeout_s": 0.2, "session_timeout_s": 5.0, **changes},
    )
    network, registry = MemoryNetwork(), CollectorRegistry()
    health, authenticator = Health(registry), make_authenticator(settings)
    routes = make_routes(settings)
    health.become("")
    context = Context(new_instance_id("gateway"), network.connect(), registry, health, tracing)
    tokenizer = load_tokenizer(folder)
    gateway = Gateway(settings, context, tokenizer, formats_of(settings, tokenizer), routes, authenticator)
    app = make_app(routes, authenticator, settings.max_body_bytes)
    health.add_routes(app)
    running = asyncio.create_task(gateway.run())
    server = TestServer(app, socket_factory=narrow_socket)
    await server.start_server(keepalive_timeout=settings.http_keepalive_s)
    async with TestClient(server) as client:
        world = World(network, gateway, client, registry, running)
        try:
            yield world
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for peer in world.peers:
                await peer.kill()


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with a_world(folder) as made:
        yield made
