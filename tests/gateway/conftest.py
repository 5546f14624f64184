"""A gateway on an in-process bus with fake peers, served over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from services.gateway.routes import Routes, make_app
from services.gateway.service import Gateway
from services.gateway.settings import GatewaySettings
from services.gateway.tokenizer import load_tokenizer
from shared.health import Health
from shared.memory_bus import MemoryNetwork
from shared.messages import TokenIds
from shared.runtime import Context
from shared.subjects import new_instance_id
from tests.gateway.fakes import MODEL, FakeDrafter, FakeVerifier
from tests.gateway.tiny import make_folder, make_tokenizer

TOKENIZER = make_tokenizer()
EOS = 2
WAIT_S = 10.0


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@dataclass
class World:
    """Everything around one gateway under test."""

    network: MemoryNetwork
    gateway: Gateway
    client: TestClient
    registry: CollectorRegistry
    answer: str = "hello world, the quick brown fox 😀"
    peers: list[FakeVerifier | FakeDrafter] | None = None

    def script(self, prompt_ids: TokenIds) -> list[int]:
        """The target's answer: the same whatever the prompt, then the end of sequence."""
        return [*ids_of(self.answer), EOS]

    async def verifier(self, name: str = "verifier", pass_s: float = 0.002) -> FakeVerifier:
        return await self._add(FakeVerifier(self.network, self.script, name, pass_s))

    async def drafter(self, name: str = "drafter") -> FakeDrafter:
        return await self._add(FakeDrafter(self.network, self.script, name))

    async def _add(self, peer):
        self.peers = [*(self.peers or []), peer]
        await peer.start()
        fleet = self.gateway.sessions.fleet
        await self.until(lambda: fleet.is_alive(peer.instance_id, asyncio.get_running_loop().time()))
        return peer

    async def until(self, holds) -> None:
        """Waits for a condition that other tasks bring about."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                await asyncio.sleep(0.005)

    async def no_session_is_left(self) -> None:
        """At the gateway and at the peers."""
        await self.until(
            lambda: not len(self.gateway.sessions) and not any(peer.sessions for peer in self.peers or [])
        )

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_gateway_{name}", labels) or 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "target")


@contextlib.asynccontextmanager
async def a_world(folder: Path, **changes: object) -> AsyncIterator[World]:
    settings = GatewaySettings(
        target=str(folder),
        model_name=MODEL,
        **{"heartbeat_s": 0.05, "poll_after_s": 0.1, "open_timeout_s": 0.2, "session_timeout_s": 5.0, **changes},
    )
    network, registry = MemoryNetwork(), CollectorRegistry()
    health, routes = Health(registry), Routes(settings.client_timeout_s)
    context = Context(new_instance_id("gateway"), network.connect(), registry, health)
    gateway = Gateway(settings, context, load_tokenizer(folder), routes)
    app = make_app(routes, settings.max_body_bytes)
    health.add_routes(app)
    running = asyncio.create_task(gateway.run())
    async with _client(app) as client:
        world = World(network, gateway, client, registry)
        try:
            yield world
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for peer in world.peers or []:
                await peer.kill()


@contextlib.asynccontextmanager
async def _client(app) -> AsyncIterator[TestClient]:
    server = TestServer(app)
    await server.start_server(handler_cancellation=True)
    async with TestClient(server) as client:
        yield client


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with a_world(folder) as made:
        yield made
