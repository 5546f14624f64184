"""What one drafter's key can take from a real nats-server: bytes of a message, subscriptions, connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client

from services.local.nats_server import LIMITS
from shared.bus.parts import PART_BYTES
from tests.k8s.machine import Machine
from tests.k8s.manifests import Secrets
from tests.k8s.test_nats_rights import Guarded, of_a_local_system, of_a_site, of_manifests

pytestmark = pytest.mark.timeout(120)

Start = Callable[[Path, Machine, dict[str, Secrets]], Guarded]
SERVERS = {"manifests": of_manifests, "site": of_a_site, "local": of_a_local_system}
MAX_SUBSCRIPTIONS = 1024


class KeyHolder:
    """A client with a key. nats-py closes a connection of which the server complains."""

    def __init__(self) -> None:
        self.client = Client()
        self.is_ended = asyncio.Event()

    async def connect(self, server: Guarded, name: str) -> None:
        tls = ssl.create_default_context(cafile=server.ca) if server.ca else None
        await self.client.connect(
            server.url,
            nkeys_seed=str(server.seeds[name]),
            tls=tls,
            allow_reconnect=False,
            connect_timeout=10,
            closed_cb=self._end,
        )

    async def _end(self) -> None:
        self.is_ended.set()


@pytest.fixture(params=SERVERS.values(), ids=SERVERS.keys())
def guarded(
    request: pytest.FixtureRequest, tmp_path: Path, machine: Machine, documented: dict[str, Secrets]
) -> Guarded:
    start: Start = request.param
    return start(tmp_path, machine, documented)


async def logged(machine: Machine, text: str) -> None:
    """Returns when the server has said so: a client may lose its connection before it reads why."""
    async with asyncio.timeout(20):
        while not any(text in line for line in machine.servers[-1].log):  # noqa: ASYNC110  a thread reads the log
            await asyncio.sleep(0.01)


def a_drafter(server: Guarded, number: int = 0) -> str:
    return sorted(name for name in server.seeds if "drafter" in name)[number]


@asynccontextmanager
async def connected(server: Guarded, name: str) -> AsyncIterator[KeyHolder]:
    holder = KeyHolder()
    await holder.connect(server, name)
    try:
        yield holder
    finally:
        await holder.client.close()


async def test_a_message_larger_than_a_part_ends_the_connection_that_sends_it(
    guarded: Guarded, machine: Machine
) -> None:
    name = a_drafter(guarded)
    subject = f"dsd.v1.verifier.x.x.draft.{name}.x"
    async with connected(guarded, name) as holder:
        assert holder.client.max_payload == PART_BYTES
        await holder.client.publish(subject, bytes(PART_BYTES))
        await holder.client.flush()
        holder.client._max_payload = 2 * PART_BYTES  # one that obeys would not send it
        await holder.client.publish(subject, bytes(PART_BYTES + 1))
        await asyncio.wait_for(holder.is_ended.wait(), 20)
        await logged(machine, f"maximum payload exceeded: {PART_BYTES + 1}")


async def test_a_connection_has_as_many_subscriptions_as_it_may_and_no_more(guarded: Guarded, machine: Machine) -> None:
    name = a_drafter(guarded)
    async with connected(guarded, name) as holder:
        for number in range(MAX_SUBSCRIPTIONS):
            await holder.client.subscribe(f"dsd.v1.drafter.{name}.{number}.>")
        await holder.client.flush()
        assert holder.client.is_connected
        await holder.client.subscribe(f"dsd.v1.drafter.{name}.more.>")
        await asyncio.wait_for(holder.is_ended.wait(), 20)
        await logged(machine, "maximum subscriptions exceeded")
    assert f"max_subscriptions: {MAX_SUBSCRIPTIONS}\n" in LIMITS


async def test_a_key_that_takes_all_connections_ends_none_of_another_s(
    tmp_path: Path, machine: Machine, documented: dict[str, Secrets]
) -> None:
    """nats-server has no limit of connections for a user, and one for all keeps newcomers out."""
    fewer = {"limits.conf": LIMITS.replace("max_connections: 2048", "max_connections: 8")}
    assert fewer["limits.conf"] != LIMITS
    server = of_manifests(tmp_path, machine, documented, fewer)
    heard: list[bytes] = []
    arrived = asyncio.Event()

    async def hear(message: object) -> None:
        heard.append(message.data)  # type: ignore[attr-defined]
        arrived.set()

    async with connected(server, a_drafter(server, 1)) as honest, connected(server, "controller") as controller:
        await honest.client.subscribe("dsd.v1.drafter.drafter-1.x.>", cb=hear)
        await honest.client.flush()
        holders = [KeyHolder() for _ in range(6)]
        for holder in holders:
            await holder.connect(server, a_drafter(server))
        host, port = server.url.removeprefix("nats://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert b"maximum connections exceeded" in await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await controller.client.publish("dsd.v1.drafter.drafter-1.x.window.controller.x", b"still here")
        await asyncio.wait_for(arrived.wait(), 20)
        for holder in holders:
            await holder.client.close()
    assert heard == [b"still here"]
