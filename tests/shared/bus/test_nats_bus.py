"""What only a real nats-server can show: restarts, half-open links, permissions, floods, bytes nobody should send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog
import uvloop
from prometheus_client import CollectorRegistry, Counter

from shared.bus import nats_bus
from shared.bus.bus import Absent
from shared.bus.nats_bus import BusLost, NatsBus
from shared.protocol import subjects
from shared.protocol.messages import Close, Heartbeat, Message
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.plugins.nats import NatsServer, StartNatsServer
from tests.shared.bus.bus_helpers import (
    ABSENT_TO,
    DRAFTER,
    DRAFTS,
    GATEWAY_INBOX,
    INBOX,
    OPENED,
    OPENS,
    SESSION,
    VERIFIER,
    Heard,
    Member,
    draft,
    prompt,
)

pytestmark = pytest.mark.timeout(60)

USERS = """
authorization {
  users = [
    {user: cloud, password: "%s"}
    {user: edge-1, password: edge-1, permissions: {
      publish: ["dsd.v1.verifier.*.*.draft.edge-1.*"]
      subscribe: ["dsd.v1.drafter.edge-1.*.>"]
    }}
  ]
}
"""


SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"  # the example of NATS's documentation
OWNER = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
NKEY_USERS = f"""
authorization {{
  users = [
    {{nkey: {OWNER}, permissions: {{publish: ["dsd.v1.>"], subscribe: ["dsd.v1.drafter.edge-1.*.>"]}}}}
  ]
}}
"""


class Watched:
    """A counter that tells when it counts, asked for its children by labels or by class."""

    def __init__(self, children: Callable[..., Counter], counted: asyncio.Event) -> None:
        self._children = children
        self._counted = counted

    def __call__(self, *labels: str | type) -> Counter:
        asyncio.get_running_loop().call_soon(self._counted.set)  # when the caller has counted
        return self._children(*labels)

    labels = __call__


class NatsMember(Member):
    """A member on a real server, and whether it believes to be connected."""

    bus: NatsBus

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.is_up = asyncio.Event()
        self.is_down = asyncio.Event()
        self.counted = asyncio.Event()

    async def connect(self) -> None:
        metrics, instance_id = BusMetrics(self.registry), subjects.new_instance_id(self.settings.name)
        for name in ("errors", "dropped"):
            setattr(metrics, name, Watched(getattr(metrics, name).labels, self.counted))
        metrics.received_as = Watched(metrics.received_as, self.counted)
        self.bus = await nats_bus.connect(self.settings, instance_id, metrics, self._on_state)

    def _on_state(self, connected: bool) -> None:
        (self.is_up if connected else self.is_down).set()
        (self.is_down if connected else self.is_up).clear()

    async def until(self, event: asyncio.Event) -> None:
        await asyncio.wait_for(event.wait(), 20)

    async def until_count(self, least: float, name: str, **labels: str) -> None:
        await self.until_counts(lambda: self.count(name, **labels) >= least)

    async def until_counts(self, are_enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not are_enough():
                self.counted.clear()
                await self.counted.wait()


Connect = Callable[..., Awaitable[NatsMember]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    members: list[NatsMember] = []

    async def join(server: NatsServer, **settings: str) -> NatsMember:
        members.append(NatsMember(ServiceSettings(nats_url=server.url, **settings)))
        await members[-1].connect()
        return members[-1]

    yield join
    for member in members:
        await member.bus.close()


@pytest.mark.parametrize("kill", [False, True], ids=["ended", "killed"])
async def test_after_a_server_restart_subscriptions_live_and_publishing_goes_on(
    nats_server: NatsServer, connect: Connect, kill: bool
) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    nats_server.stop(kill=kill)
    await asyncio.gather(drafter.until(drafter.is_down), verifier.until(verifier.is_down))
    await drafter.bus.publish(DRAFTS, draft(1))
    nats_server.start()
    await asyncio.gather(drafter.until(drafter.is_up), verifier.until(verifier.is_up))
    await drafter.bus.publish(DRAFTS, draft(2))
    assert await heard.wait_for(1) == [draft(2)]
    assert drafter.count("dropped_messages", reason="not connected") == 1
    assert drafter.count("reconnects") == verifier.count("reconnects") == 1


async def test_a_subscription_made_while_disconnected_lives_after_the_restart(
    nats_server: NatsServer, connect: Connect
) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    nats_server.stop()
    await verifier.until(verifier.is_down)
    await verifier.bus.subscribe(INBOX, heard)
    nats_server.start()
    await asyncio.gather(drafter.until(drafter.is_up), verifier.until(verifier.is_up))
    await verifier.bus.subscribe(
        subjects.all_broadcasts(Heartbeat, "gateway"), Heard()
    )  # its answer comes after the first one's
    await drafter.bus.publish(DRAFTS, draft(1))
    assert await heard.wait_for(1) == [draft(1)]


async def test_the_first_connect_waits_for_a_server_and_says_so(nats_server: NatsServer) -> None:
    nats_server.stop()
    member = NatsMember(ServiceSettings(nats_url=nats_server.url))
    with structlog.testing.capture_logs() as lines:
        connecting = asyncio.create_task(member.connect())
        await member.until_count(2, "errors", kind="connection")
        assert not connecting.done()
        nats_server.start()
        await asyncio.wait_for(connecting, 20)
    await member.bus.close()
    assert [line["event"] for line in lines] == ["bus: connection", "bus connected"]
    assert "refused" in lines[0]["error"].lower() or "connect" in lines[0]["error"].lower()


async def test_a_wrong_password_is_named_and_tried_again(start_nats_server: StartNatsServer) -> None:
    server = start_nats_server(USERS % "right")
    member = NatsMember(ServiceSettings(nats_url=server.url, nats_user="cloud", nats_password="wrong"))
    with structlog.testing.capture_logs() as lines:
        connecting = asyncio.create_task(member.connect())
        await member.until_count(2, "errors", kind="connection")
        server.reload(USERS % "wrong")
        await asyncio.wait_for(connecting, 20)
    await member.bus.close()
    assert "authorization violation" in lines[0]["error"].lower()


async def test_a_seed_proves_who_its_owner_is_at_every_connection(
    start_nats_server: StartNatsServer, connect: Connect, tmp_path: Path
) -> None:
    server, seed = start_nats_server(NKEY_USERS), tmp_path / "seed"
    seed.write_text(SEED + "\n")
    drafter = await connect(server, nats_nkey_seed=str(seed))
    server.stop()
    await drafter.until(drafter.is_down)
    server.start()
    await drafter.until(drafter.is_up)
    with pytest.raises(PermissionError, match=INBOX):
        await drafter.bus.subscribe(INBOX, Heard())


async def test_a_seed_that_the_server_does_not_know_is_named(
    start_nats_server: StartNatsServer, tmp_path: Path
) -> None:
    server, seed = start_nats_server(NKEY_USERS), tmp_path / "seed"
    seed.write_text(SEED[:-12] + "A" * 12)
    member = NatsMember(ServiceSettings(nats_url=server.url, nats_nkey_seed=str(seed)))
    with structlog.testing.capture_logs() as lines:
        connecting = asyncio.create_task(member.connect())
        await member.until_count(1, "errors", kind="connection")
    connecting.cancel()
    assert "authorization violation" in lines[0]["error"].lower()


async def test_a_connection_that_the_server_ends_for_good_is_told(
    start_nats_server: StartNatsServer, connect: Connect
) -> None:
    server = start_nats_server(USERS % "right")
    member = await connect(server, nats_user="cloud", nats_password="right")
    lost = asyncio.create_task(member.bus.lost())
    server.reload(USERS % "changed")
    with pytest.raises(BusLost, match="authorization"):
        await asyncio.wait_for(lost, 20)


async def test_a_half_open_link_is_noticed(
    nats_server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_bus, "PING_INTERVAL_S", 0.1)
    member = await connect(nats_server)
    nats_server.pause()
    await member.until(member.is_down)
    nats_server.resume()
    await member.until(member.is_up)


async def test_publishing_over_a_stuck_link_drops_and_never_waits(nats_server: NatsServer, connect: Connect) -> None:
    gateway = await connect(nats_server)
    nats_server.pause()
    async with asyncio.timeout(10):
        for _ in range(60):
            await gateway.bus.publish(OPENS, prompt(1 << 16))
    nats_server.resume()
    sent = gateway.count("published_messages", message="Open")
    assert sent * (1 << 18) > nats_bus.OUTBOUND_BYTES / 2
    assert gateway.count("dropped_messages", reason="outbound full") == 60 - sent > 0


async def test_a_server_that_answers_after_a_flush_was_given_up_makes_nobody_deaf(
    nats_server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_bus, "FLUSH_TIMEOUT_S", 0.2)
    member, sender = await connect(nats_server), await connect(nats_server)
    heard = Heard()
    nats_server.pause()
    await member.bus.subscribe(INBOX, heard)  # not confirmed in time
    nats_server.resume()
    async with asyncio.timeout(nats_bus.PING_INTERVAL_S):  # before a dead link would be noticed
        while not heard.all:
            await sender.bus.publish(DRAFTS, draft(1))
            await asyncio.sleep(0.05)


async def test_closing_over_a_stuck_link_ends(
    nats_server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_bus, "CLOSE_TIMEOUT_S", 0.2)
    member = await connect(nats_server)
    await member.bus.subscribe(INBOX, Heard())
    nats_server.pause()
    async with asyncio.timeout(10):
        await member.bus.close()


async def test_closing_without_a_server_ends(nats_server: NatsServer, connect: Connect) -> None:
    member = await connect(nats_server)
    await member.bus.subscribe(INBOX, Heard())
    nats_server.stop()
    await member.until(member.is_down)
    async with asyncio.timeout(10):
        await member.bus.close()


def test_closing_without_a_server_ends_on_uvloop_with_unsent_messages(nats_server: NatsServer) -> None:
    """uvloop refuses to write to a closed transport, where asyncio's own transports only warn."""
    is_down = asyncio.Event()

    async def close() -> None:
        settings, metrics = ServiceSettings(nats_url=nats_server.url), BusMetrics(CollectorRegistry())
        bus = await nats_bus.connect(
            settings, VERIFIER, metrics, lambda connected: None if connected else is_down.set()
        )
        await bus.subscribe(INBOX, Heard())
        nats_server.stop(kill=True)
        while not is_down.is_set():
            await bus.publish(DRAFTS, draft(1))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await bus.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(close())


async def test_a_forbidden_publish_is_counted_and_named(start_nats_server: StartNatsServer, connect: Connect) -> None:
    server = start_nats_server(USERS % "cloud")
    verifier = await connect(server, nats_user="cloud", nats_password="cloud")
    drafter = await connect(server, nats_user="edge-1", nats_password="edge-1")
    heard = Heard()
    await verifier.bus.subscribe("dsd.v1.>", heard)
    with structlog.testing.capture_logs() as lines:
        await drafter.bus.publish(subjects.broadcast(Heartbeat, "drafter", "edge-2.0123456789ab"), draft(1))
        await drafter.bus.publish(DRAFTS, draft(2))
        assert await heard.wait_for(1) == [draft(2)]
        await drafter.until_count(1, "errors", kind="permission violation")
    assert "dsd.v1.heartbeat.drafter.edge-2.0123456789ab" in lines[0]["error"]


async def test_a_forbidden_subscription_is_refused(start_nats_server: StartNatsServer, connect: Connect) -> None:
    server = start_nats_server(USERS % "cloud")
    drafter = await connect(server, nats_user="edge-1", nats_password="edge-1")
    await drafter.bus.subscribe(subjects.inbox("drafter", DRAFTER), Heard())
    with pytest.raises(PermissionError, match=INBOX):
        await drafter.bus.subscribe(INBOX, Heard())
    assert drafter.count("errors", kind="permission violation") == 1


async def test_garbage_is_counted_and_the_next_message_arrives(nats_server: NatsServer, connect: Connect) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    for payload in (b"", b"\xff" * 100, b"\xc1", b"\xc1" + bytes(12), b"\x98\xa5draft", bytes(1 << 19)):
        say(nats_server, b"PUB " + DRAFTS.encode() + b" %d\r\n%b\r\n" % (len(payload), payload))
    await drafter.bus.publish(DRAFTS, draft(1))
    assert await heard.wait_for(1) == [draft(1)]
    assert verifier.count("dropped_messages", reason="malformed") == 6


@pytest.mark.parametrize(
    "command",
    [
        b"PUB dsd.v1.heartbeat.gateway.edge-1.\xff\xfe 2\r\nhi\r\n",
        b"HPUB dsd.v1.heartbeat.gateway.edge-1.x 20 20\r\nNATS/1.0 503 \xff\xff\xff\r\n\r\n\r\n",
        b"HPUB dsd.v1.heartbeat.gateway.edge-1.x 8 8\r\nNATS/1.0\r\n",
        b"HPUB dsd.v1.heartbeat.gateway.edge-1.x 1 1\r\nN\r\n",
    ],
    ids=["subject", "status", "no-header-lines", "short"],
)
async def test_a_message_that_the_client_can_not_read_does_not_make_it_deaf(
    nats_server: NatsServer, connect: Connect, command: bytes
) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    await verifier.bus.subscribe(subjects.all_broadcasts(Heartbeat, "gateway"), heard)
    await verifier.bus.subscribe(INBOX, heard)
    say(nats_server, command)
    await drafter.bus.publish(DRAFTS, draft(1))
    assert await heard.wait_for(1) == [draft(1)]
    assert verifier.count("dropped_messages", reason="malformed") == 1
    assert verifier.count("reconnects") == 0


async def test_absence_that_a_peer_makes_up_on_another_verb_is_malformed(
    nats_server: NatsServer, connect: Connect
) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    say(nats_server, b"HPUB " + DRAFTS.encode() + b" 16 16\r\nNATS/1.0 503\r\n\r\n\r\n")
    await drafter.bus.publish(DRAFTS, draft(1))
    assert await heard.wait_for(1) == [draft(1)]
    assert verifier.count("dropped_messages", reason="malformed") == 1


async def test_absence_is_told_after_a_restart_too(nats_server: NatsServer, connect: Connect) -> None:
    gateway, heard = await connect(nats_server), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    nats_server.stop()
    await gateway.until(gateway.is_down)
    nats_server.start()
    await gateway.until(gateway.is_up)
    await gateway.bus.publish(OPENS, Close(SESSION, 1), absent_to=ABSENT_TO)
    assert await heard.wait_for(1) == [Absent()]


async def test_messages_of_all_subscriptions_are_handled_in_the_order_of_their_coming_and_none_is_lost(
    nats_server: NatsServer, connect: Connect
) -> None:
    drafter, verifier, heard = await connect(nats_server), await connect(nats_server), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    await verifier.bus.subscribe(GATEWAY_INBOX, heard)
    sent: list[Message] = []
    for base in range(2000):  # while the loop is busy publishing
        sent += [draft(base), Close(SESSION, base)]
        await drafter.bus.publish(DRAFTS, sent[-2])
        await drafter.bus.publish(OPENED, sent[-1])
    assert await heard.wait_for(4000) == sent


def say(server: NatsServer, command: bytes) -> None:
    """Says something to the server that a proper client would not; returns once the server has taken it."""
    host, port = server.url.removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + command + b"PING\r\n")
        answer = b""
        while b"PONG" not in answer:
            received = link.recv(65536)
            assert received, f"the server refused: {answer!r}"
            answer += received
        assert b"-ERR" not in answer, answer
