"""How a service process lives and ends, seen from outside: status, logs, health endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shared import service as runtime
from shared.runtime.config import ServiceSettings
from tests.plugins.nats import NatsServer, StartNatsServer

pytestmark = pytest.mark.timeout(90)

TIMEOUT_S = 30
NOBODY = "nats://127.0.0.1:1"
USERS = """
authorization { users = [{user: sample, password: "%s", permissions: {subscribe: ["dsd.v1.>"]}}] }
"""


@dataclass
class Service:
    """A running sample service: its process, the lines it logged so far, and its HTTP side."""

    process: Process
    http: aiohttp.ClientSession
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, event: str) -> dict[str, Any]:
        """Reads log lines up to the one with this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            while text := await self.process.stderr.readline():
                self.lines.append(json.loads(text))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"no {event!r} among {[line['event'] for line in self.lines]}")

    async def end(self) -> int:
        """Reads on until the process has ended; its status."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            self.lines += [json.loads(line) async for line in self.process.stderr]
            return await self.process.wait()

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    @property
    def url(self) -> str:
        return next(line["url"] for line in self.lines if line["event"] == "http endpoints up")

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.url + path) as answer:
            return answer.status, await answer.text()


Launch = Callable[..., Awaitable[Service]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """launch(nats_url, *flags) -> Service, whose HTTP endpoints are up."""
    services: list[Service] = []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DSD_")}

    async def start(nats_url: str, *flags: str, up: bool = True) -> Service:
        command = [sys.executable, "-m", "tests.shared.sample_service", "--nats-url", nats_url, *flags]
        process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environment)
        services.append(Service(process, aiohttp.ClientSession(timeout=timeout)))
        if up:
            await services[-1].until("http endpoints up")
        return services[-1]

    yield start
    for service in services:
        await service.http.close()
        if service.process.returncode is None:
            service.process.kill()
            await service.process.wait()


async def test_health_answers_before_the_bus_is_there(launch: Launch) -> None:
    service = await launch(NOBODY)
    await service.until("bus: connection")  # it says that it can't connect
    assert await service.get("/healthz") == (200, "ok\n")
    assert await service.get("/readyz") == (503, "not ready: connecting to NATS\n")
    status, metrics = await service.get("/metrics")
    assert status == 200
    assert "dsd_ready 0.0" in metrics
    assert "process_resident_memory_bytes" in metrics
    tasks = re.search(r"^dsd_asyncio_tasks (\d+)", metrics, re.MULTILINE)
    assert tasks is not None
    assert int(tasks[1]) > 3, "its life, the watch of the loop, the bus that connects, this request"
    service.process.terminate()
    assert await service.end() == 0


async def test_readiness_follows_the_bus(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url)
    await service.until("serving")
    assert await service.get("/readyz") == (200, "ready\n")
    nats_server.stop()
    await service.until("bus disconnected, trying to reconnect")
    assert await service.get("/readyz") == (503, "not ready: not connected to NATS\n")
    assert await service.get("/healthz") == (200, "ok\n")
    assert "dsd_bus_connected 0.0" in (await service.get("/metrics"))[1]
    nats_server.start()
    await service.until("bus reconnected")
    assert await service.get("/readyz") == (200, "ready\n")
    metrics = (await service.get("/metrics"))[1]
    assert "dsd_bus_reconnects_total 1.0" in metrics
    assert "dsd_bus_connected 1.0" in metrics


async def test_a_service_that_loads_is_not_ready_and_can_be_ended(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--fault", "loading")
    await service.until("loading")
    assert await service.get("/readyz") == (503, "not ready: loading\n")
    service.process.terminate()
    assert await service.end() == 0
    assert service.events[-1] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_open_sessions_finish(nats_server: NatsServer, launch: Launch, number: int) -> None:
    service = await launch(nats_server.url)
    await service.until("ready")
    service.process.send_signal(number)
    await service.until("draining")
    assert await service.get("/readyz") == (503, "not ready: draining\n")
    assert await service.get("/healthz") == (200, "ok\n")
    await service.http.post(service.url + "/end")
    assert await service.end() == 0
    assert service.events[-1] == "stopped"


async def test_the_drain_has_a_deadline(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--fault", "drain hangs", "--drain-s", "0.2")
    await service.until("ready")
    service.process.terminate()
    assert await service.end() == 0
    assert "drain deadline passed; open sessions are abandoned" in service.events


async def test_a_second_signal_ends_at_once(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--drain-s", "600")
    await service.until("ready")
    service.process.terminate()
    await service.until("draining")
    service.process.terminate()
    assert await service.end() == 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("run fails", "RuntimeError: run failed on 13 characters"),
        ("loading fails", "FileNotFoundError: no model here"),
    ],
)
async def test_a_crash_ends_the_process_with_a_traceback(
    nats_server: NatsServer, launch: Launch, fault: str, told: str
) -> None:
    service = await launch(nats_server.url, "--fault", fault)
    assert await service.end() == 1
    last = service.lines[-1]
    assert (last["event"], last["level"]) == ("service failed", "error")
    assert last["exception"].startswith("Traceback")
    assert last["exception"].endswith(told)
    assert "do not log me" not in json.dumps(service.lines)


async def test_a_failing_drain_is_a_crash(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--fault", "drain fails")
    await service.until("ready")
    service.process.terminate()
    assert await service.end() == 1
    assert service.lines[-1]["exception"].endswith("RuntimeError: drain failed")


async def test_work_that_ends_by_itself_ends_the_process(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--fault", "run ends")
    assert await service.end() == 0


async def test_a_thread_that_hangs_does_not_hold_the_process(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--fault", "thread hangs")
    await service.until("serving")
    service.process.terminate()
    assert await service.end() == 0
    assert service.events[-1] == "did not end in time, exiting"
    assert service.lines[-1]["after_s"] == 1.0  # from the end of work on, not from the signal


async def test_a_user_that_may_not_listen_is_told_and_ends(start_nats_server: StartNatsServer, launch: Launch) -> None:
    server = start_nats_server(USERS % "a")
    service = await launch(server.url, "--nats-user", "sample", "--nats-password", "a", "--fault", "deaf")
    assert await service.end() == 1
    assert "denies this user the subscription 'forbidden'" in service.lines[-1]["exception"]


async def test_a_bus_that_is_lost_for_good_ends_the_process(start_nats_server: StartNatsServer, launch: Launch) -> None:
    server = start_nats_server(USERS % "a")
    service = await launch(server.url, "--nats-user", "sample", "--nats-password", "a")
    await service.until("serving")
    server.reload(USERS % "b")
    assert await service.end() == 1
    assert "BusLost" in service.lines[-1]["exception"]


async def test_a_port_that_is_taken_is_named(launch: Launch) -> None:
    first = await launch(NOBODY)
    port = first.url.rsplit(":", 1)[1]
    second = await launch(NOBODY, "--http-port", port, up=False)
    assert await second.end() == 1
    assert port in second.lines[-1]["exception"]


async def test_every_log_line_says_who_speaks(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--name", "gateway-7")
    await service.until("serving")
    service.process.terminate()
    await service.http.post(service.url + "/end")
    await service.end()
    assert {line["service"] for line in service.lines} == {"gateway"}
    assert len({line["instance"] for line in service.lines}) == 1
    assert re.fullmatch(r"gateway-7\.[0-9a-f]{12}", service.lines[0]["instance"])
    assert all("timestamp" in line and "level" in line for line in service.lines)
    assert [line["session"] for line in service.lines if line["event"] == "serving"] == ["abc"]
    assert "subscribed" not in service.events  # a debug line


async def test_the_log_level_is_a_setting(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--log-level", "debug")
    assert (await service.until("subscribed"))["level"] == "debug"


async def test_a_bad_setting_ends_the_process_before_anything_starts(launch: Launch) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shared.sample_service", "--http-port", "many", stderr=PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 2
    assert err.decode().startswith("sample: --http-port / DSD_HTTP_PORT: ")
    assert err.count(b"\n") == 1


async def test_a_life_inside_a_running_loop_ends_when_told(nats_server: NatsServer) -> None:
    started, stop, drained = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Idle:
        async def run(self) -> None:
            started.set()
            await asyncio.Event().wait()

        async def drain(self) -> None:
            drained.set()

    async def start(context: runtime.Context) -> Idle:
        return Idle()

    settings = ServiceSettings(nats_url=nats_server.url)
    life = asyncio.create_task(runtime.live("idle.0123456789ab", settings, start, stop, web.Application()))
    await asyncio.wait_for(started.wait(), TIMEOUT_S)
    stop.set()
    await asyncio.wait_for(life, TIMEOUT_S)
    assert drained.is_set()


async def test_an_idle_connection_is_closed_after_the_keep_alive_time(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url, "--http-keepalive-s", "0.3")
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"ok\n")


async def test_requests_that_are_no_http_leave_no_error_in_the_log(nats_server: NatsServer, launch: Launch) -> None:
    service = await launch(nats_server.url)
    host, port = service.url.removeprefix("http://").split(":")
    for sent in (
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 10_000 + b"\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):
            assert b" 400 " in await reader.readline()
        writer.close()
    service.process.send_signal(signal.SIGTERM)
    await service.end()
    assert [line for line in service.lines if line["level"] == "error"] == []
