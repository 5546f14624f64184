"""NATS over WebSockets: as over TCP, through proxies too, and in clear to nobody who was asked for TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from services.local.nats_server import free_port
from shared.runtime.config import ServiceSettings
from shared.runtime.nats_keys import new_seed, public_key
from tests.plugins.nats import NatsServer, StartNatsServer
from tests.shared.bus.bus_helpers import DRAFTS, INBOX, Heard, draft
from tests.shared.bus.test_nats_bus import NatsMember

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of connects that a test cancels
]


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Web:
    """A server that listens to WebSockets with TLS, and has one user."""

    def __init__(self, start: StartNatsServer, folder: Path, name: str = "127.0.0.1", more: str = "") -> None:
        ca, self.port, self.seed = trustme.CA(), free_port(), new_seed()
        self.ca = ca.cert_pem.bytes().decode()
        certificate = ca.issue_cert(name)
        certificate.private_key_pem.write_to_path(folder / "tls.key")
        certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
        self.server: NatsServer = start(
            f'websocket {{host: "127.0.0.1", port: {self.port}, {more} '
            f'tls {{cert_file: "{folder}/tls.crt", key_file: "{folder}/tls.key"}}}}\n'
            f"authorization {{users: [{{nkey: {public_key(self.seed)}}}]}}\n"
        )

    def member(self, **changes: str) -> NatsMember:
        settings = {"nats_url": f"wss://127.0.0.1:{self.port}", "nats_ca": self.ca, "nats_key": self.seed}
        return NatsMember(ServiceSettings(**{**settings, **changes}))


@pytest.fixture
def web(start_nats_server: StartNatsServer, tmp_path: Path) -> Web:
    return Web(start_nats_server, tmp_path)


@asynccontextmanager
async def connected(*members: NatsMember) -> AsyncIterator[None]:
    for member in members:
        await member.connect()
    try:
        yield
    finally:
        for member in members:
            await member.bus.close()


async def test_messages_arrive_in_order_and_large_ones_whole(web: Web) -> None:
    hearer, speaker, heard = web.member(), web.member(), Heard()
    async with connected(hearer, speaker):
        await hearer.bus.subscribe(INBOX, heard)
        for base in range(100):
            await speaker.bus.publish(DRAFTS, draft(base))
        assert [message.base for message in await heard.wait_for(100)] == list(range(100))  # type: ignore[union-attr]


async def test_after_a_restart_it_comes_back_and_hears_again(web: Web) -> None:
    hearer, speaker, heard = web.member(), web.member(), Heard()
    async with connected(hearer, speaker):
        await hearer.bus.subscribe(INBOX, heard)
        web.server.stop(kill=True)
        await hearer.until(hearer.is_down)
        await speaker.until(speaker.is_down)
        await asyncio.to_thread(web.server.start)
        await hearer.until(hearer.is_up)
        await speaker.until(speaker.is_up)
        await speaker.bus.publish(DRAFTS, draft(1))
        await heard.wait_for(1)


async def test_a_server_tells_other_addresses_in_vain(start_nats_server: StartNatsServer, tmp_path: Path) -> None:
    """nats-py would take them for TCP addresses, and go on there without the settings' TLS."""
    member = Web(start_nats_server, tmp_path, more='advertise: "127.0.0.1:1",').member()
    async with connected(member):
        assert len(member.bus._client._server_pool) == 1


@pytest.mark.parametrize(("changes", "told"), [({"nats_ca": ""}, "certificate"), ({"nats_key": new_seed()}, "uthoriz")])
async def test_another_ca_s_server_and_an_unknown_key_are_no_use(
    web: Web, changes: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, said = web.member(**changes), list[str]()
    monkeypatch.setattr("shared.bus.nats_bus.log.warning", lambda event, **about: said.append(str(about)))
    connecting = asyncio.create_task(member.connect())
    await member.until_count(1, "errors", kind="connection")
    assert not connecting.done()
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    assert told in said[0]


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[int]:
    """The port of a server; its connections are closed at the end."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_connection_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.bus.nats_bus.CONNECT_TIMEOUT_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with serving(silent) as port:
        member = NatsMember(ServiceSettings(nats_url=f"ws://127.0.0.1:{port}"))
        connecting = asyncio.create_task(member.connect())
        await member.until_count(1, "errors", kind="connection")
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)


async def test_it_goes_through_the_proxy_that_the_environment_names(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there, back = await asyncio.open_connection("127.0.0.1", web.port)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            back.close()

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with serving(proxy) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        async with connected(web.member()):
            pass
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{web.port} ".encode())


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()
