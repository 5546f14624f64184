"""The gateway as the runtime runs it: a real nats-server, its own HTTP server, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from services.gateway.service import prepare
from services.gateway.settings import GatewaySettings
from services.local.nats_server import free_port
from shared.bus import nats_bus
from shared.protocol.messages import Close
from shared.protocol.subjects import new_instance_id
from shared.runtime.metrics import BusMetrics
from shared.service import live
from tests.gateway.conftest import EOS, ids_of, until
from tests.gateway.fakes import MODEL, FakeVerifier
from tests.plugins.nats import NatsServer

ANSWER = "hello world " * 30
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


@dataclass
class Running:
    """A gateway's life and a verifier on a nats-server."""

    url: str
    stop: asyncio.Event
    living: asyncio.Task[None]
    verifier: FakeVerifier
    client: aiohttp.ClientSession

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        async with asyncio.timeout(60):
            return await response.content.read()


@pytest.fixture
async def running(folder: Path, nats_server: NatsServer) -> AsyncIterator[Running]:
    port = free_port()
    settings = GatewaySettings(
        target=str(folder), model_name=MODEL, nats_url=nats_server.url, http_port=port, heartbeat_s=0.1, drain_s=60.0
    )
    stop = asyncio.Event()
    start, app = prepare(settings)
    living = asyncio.create_task(live(new_instance_id("gateway"), settings, start, stop, app))
    bus = await nats_bus.connect(settings, new_instance_id("verifier"), BusMetrics(CollectorRegistry()))
    verifier = FakeVerifier(bus, lambda prompt: [*ids_of(ANSWER), EOS], pass_s=0.02)
    await verifier.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        await ready(client)
        yield Running(settings.nats_url, stop, living, verifier, client)
        stop.set()
        async with asyncio.timeout(60):
            await living
    await verifier.kill()


def text_of(stream: bytes) -> str:
    """The text of a whole event stream that ended well."""
    *events, done, _ = stream.split(b"\n\n")
    assert done == b"data: [DONE]"
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
    assert choices[-1]["finish_reason"] == "stop"
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def ready(client: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if (await client.get("/readyz")).status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_closes_its_session(running: Running, stream: bool) -> None:
    asking = asyncio.create_task(running.client.post("/v1/chat/completions", json={**CHAT, "stream": stream}))
    await until(lambda: bool(running.verifier.sessions))
    if stream:
        (await asking).close()
    else:
        asking.cancel()
    await until(lambda: bool(running.verifier.of(Close)))
    assert running.verifier.num_cut_short == 1


async def test_every_open_connection_counts_until_its_client_leaves(running: Running) -> None:
    async def connections() -> float:
        text = await (await running.client.get("/metrics")).text()
        (line,) = [line for line in text.splitlines() if line.startswith("dsd_gateway_connections ")]
        return float(line.split()[1])

    alone = await connections()
    streams = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
    assert await connections() == alone + 2
    for stream in streams:
        stream.close()
    async with asyncio.timeout(10):
        while await connections() > alone:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def answered(client: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    """Asks again as long as no verifier is there: it may be back later than the gateway."""
    async with asyncio.timeout(30):
        while True:
            response = await client.post("/v1/chat/completions", json={**CHAT, "stream": False})
            if response.status != 503:
                return response
            await asyncio.sleep(0.05)


async def test_a_stream_survives_a_restart_of_the_nats_server(running: Running, nats_server: NatsServer) -> None:
    responses = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(8)]
    begun = [await response.content.readuntil(b"\n\n") for response in responses]
    nats_server.stop(kill=True)
    await asyncio.sleep(0.3)
    nats_server.start()
    await ready(running.client)
    expected = await answered(running.client)
    assert (await expected.json())["choices"][0]["message"]["content"] == ANSWER
    for first, response in zip(begun, responses, strict=True):
        assert text_of(first + await running.read(response)) == ANSWER


async def test_the_end_lets_streams_finish(running: Running) -> None:
    response = await running.client.post("/v1/chat/completions", json=CHAT)
    running.stop.set()
    body = await running.read(response)
    assert text_of(body) == ANSWER
    async with asyncio.timeout(60):
        await running.living


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--target", "/nowhere"], "--target"),
        (["--target", "FOLDER", "--verifier-routing", "best"], "--verifier-routing"),
        (["--target", "FOLDER", "--api-keys-file", "/nowhere"], "--api-keys-file"),
        ([], "--target"),
    ],
)
def test_a_bad_setting_stops_the_process_with_one_line(folder: Path, flags: list[str], told: str) -> None:
    command = [sys.executable, "-m", "services.gateway", *(str(folder) if f == "FOLDER" else f for f in flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_lists_every_setting() -> None:
    command = [sys.executable, "-m", "services.gateway", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert all("--" + name.replace("_", "-") in told for name in GatewaySettings.model_fields if "password" not in name)


def test_the_gateway_needs_neither_torch_nor_transformers() -> None:
    program = "import sys, services.gateway.service; sys.exit(any(m in sys.modules for m in %r))"
    heavy = ["torch", "transformers", "onnxruntime", "numpy"]
    subprocess.run([sys.executable, "-c", program % (heavy,)], timeout=60, check=True)


async def test_an_idle_gateway_that_must_end_still_answers_those_who_do_not_know_yet(running: Running) -> None:
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    url = running.client._base_url
    assert url is not None
    connections = [await asyncio.open_connection(url.host, url.port) for _ in range(4)]
    await asyncio.sleep(0.05)  # accepted
    running.stop.set()
    await asyncio.sleep(0.1)
    for reader, writer in [*connections, await asyncio.open_connection(url.host, url.port)]:
        writer.write(head + body)
        async with asyncio.timeout(30):
            assert (await reader.readline()).split()[1:2] == [b"503"]
        writer.close()
