"""What a hostile run calls a violation: no answer, a kept connection, an attack that reached no session."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio
from benchmarks.hostile import flood as flooding
from benchmarks.hostile import run as running
from benchmarks.hostile import sockets
from benchmarks.hostile.__main__ import main
from benchmarks.hostile.answers import Violation, is_long_work
from benchmarks.hostile.bodies import CHAT, HostileBody, systematic
from benchmarks.hostile.flood import LEFT, Flood, send_all, systematic_bodies
from benchmarks.hostile.honest import Disturbed, HonestClients
from benchmarks.hostile.records import HostileResult, HttpFigures, RoleFigures, Slowdown
from benchmarks.hostile.role_attack import together, violations_of
from benchmarks.hostile.run import HostilePlan, HostileRun
from benchmarks.hostile.sockets import HostileConnection, attack, connections, request
from benchmarks.hostile.system import KV_TOKENS, SystemUnderAttack
from services.local.nats_server import Access

MODEL = "m"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def a_server(answer: bytes = b"", *, closes: bool = False) -> AsyncIterator[str]:
    """The address of a server that answers whatever comes with these bytes. closes: then it ends the connection."""
    transports: list[asyncio.Transport] = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(cast(asyncio.Transport, transport))

        def data_received(self, data: bytes) -> None:
            transports[-1].write(answer)
            if closes:
                transports[-1].close()

    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for transport in transports:
            transport.abort()


def a_body(**fields: Any) -> HostileBody:
    return HostileBody("a body", CHAT, json.dumps({"model": MODEL, "messages": [], **fields}).encode())


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "is_violation"), [({"max_tokens": 4}, True), ({"max_tokens": 5000}, False)])
async def test_a_request_without_an_answer_is_a_violation_unless_it_asked_for_long_work(
    fields: dict[str, int], is_violation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flooding, "PATIENCE_S", 0.2)
    flood = Flood()
    async with a_server() as url:
        await send_all(url, [a_body(**fields)], 1, flood)
    assert flood.counts == {LEFT: 1 + is_violation}, "it is sent again alone"
    assert [each.what for each in flood.violations] == ["no answer within 0.2 s"] * is_violation


async def test_a_request_that_is_answered_when_it_is_sent_alone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bool] = []

    async def send(http: object, url: str, body: object, flood: Flood, late: list[object] | None = None) -> None:
        sent.append(late is None)
        if late is not None:
            late.append(body)

    monkeypatch.setattr(flooding, "send", send)
    await send_all("", [a_body(), a_body()], 2, Flood())
    assert sent == [False, False, True, True]


async def test_the_kv_cache_is_filled_by_one_answer_or_the_run_ends() -> None:
    for status, is_disturbed in (("200 OK", False), ("503 Service Unavailable", True)):
        answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
        async with a_server(answer) as url, aiohttp.ClientSession() as http:
            with pytest.raises(Disturbed, match="503") if is_disturbed else nullcontext():
                await HonestClients(url, MODEL, http).fill_cache(KV_TOKENS)


def test_growth_is_the_median_of_the_last_third_less_that_of_the_middle_one(tmp_path: Path) -> None:
    system = SystemUnderAttack("", MODEL, cast(Access, None), {}, tmp_path, set())
    system.memory = {"leaks": [50, 9, 9, 10, 12, 14], "calm": [1, 2, 3, 3, 3, 3], "short": [1, 2, 3]}
    assert system.growth() == {"leaks": 3.5, "calm": 0.0}


def test_long_work_is_a_long_prompt_many_tokens_or_many_choices_of_a_body_that_can_be_read() -> None:
    assert not is_long_work(a_body(max_tokens=16, n=16))
    assert is_long_work(a_body(max_tokens=64, n=16))
    assert is_long_work(a_body(max_output_tokens=1e999))
    assert is_long_work(a_body(user="a" * 5000))
    assert is_long_work(a_body(prompt=["a"] * 100, max_tokens=16))
    assert not is_long_work(HostileBody("", CHAT, b"{" + b"a" * 5000))
    assert not is_long_work(a_body(max_tokens="many", n=None))


async def test_memory_that_is_not_read_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(system: SystemUnderAttack, http: object) -> None:
        raise TimeoutError("sessions are left")

    monkeypatch.setattr(SystemUnderAttack, "idle", idle)
    monkeypatch.setattr(SystemUnderAttack, "read_memory", lambda system: system.memory.update(read=[1.0]))
    system = SystemUnderAttack("", MODEL, cast(Any, None), {}, Path(), set())
    result = HostileResult(Origin("a command", "a machine", "a date", "3"), 1)
    plan = HostilePlan("nats", 10, 100, 1.0, 1.0, 0, 1)
    await HostileRun(system, HonestClients("", MODEL, cast(Any, None)), plan, result)._read_memory()
    assert ["sessions are left" in each for each in result.violations] == [True]
    assert system.memory == {}


def test_the_parts_of_an_attack_count_together() -> None:
    first = RoleFigures("drafter", 10, 1.0, {"Load": 3}, 1, 0, 5, 0, ["a text"])
    second = RoleFigures("drafter", 20, 2.5, {"Load": 4, "Open": 1}, 0, 2, 7, 1, ["another"])
    assert together([first, second]) == RoleFigures(
        "drafter", 30, 3.5, {"Load": 7, "Open": 1}, 1, 2, 12, 1, ["a text", "another"]
    )


async def test_violations_beside_the_measurement_of_tpot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(url: str, honest: object, bodies: object, rate: float, num: int, flood: Flood, seed: int) -> Any:
        flood.note("500", Violation("status 500", "a request", "an answer"))
        return Slowdown(Ratio(1.0, 0.9, 1.05), rate, 30.0, num)

    monkeypatch.setattr(running, "measure_slowdown", measured)
    result = HostileResult(Origin("a command", "a machine", "a date", "3"), 1)
    result.http = HttpFigures(1, 1, {}, {}, 0.0, 1)
    system = SystemUnderAttack("http://nowhere", MODEL, cast(Any, None), {}, Path(), set())
    attacking = HostileRun(system, cast(HonestClients, None), HostilePlan("http", 10, 10, 20.0, 500.0, 4, 1), result)
    await attacking._measure_slowdown(Flood())
    assert len(result.violations) == 1
    assert "status 500" in result.violations[0]


def test_a_run_sends_every_systematic_body_by_default() -> None:
    num = inspect.signature(main).parameters["requests"].default
    assert len(systematic_bodies(MODEL, 1, num)) == len(list(systematic(MODEL)))


# --- connections -----------------------------------------------------------------------------------------------------


async def test_a_whole_request_without_an_answer_is_a_fault() -> None:
    plain = next(each for each in connections(MODEL) if each.name == "GET /v1/models")
    async with a_server(closes=True) as url:
        assert (await attack(url, plain, 1.0)).fault == "0 answers to 1 requests"
        half = HostileConnection("half a head", request("GET", "/")[:-4], half=True, least=0)
        assert (await attack(url, half, 1.0)).fault is None


def test_only_connections_without_a_whole_request_may_stay_without_an_answer() -> None:
    for each in connections(MODEL):
        is_gone = each.half or each.reset
        is_half = not each.raw or each.drip or each.name == "half a head and silence"
        assert each.least >= 1 or is_gone or is_half or each.name == "HTTP/0.9", each.name


@pytest.mark.parametrize("answer", [b"", ANSWER])
async def test_a_connection_that_is_kept_beyond_the_timeouts_is_a_fault(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "BUSY_S", 0.1)
    async with a_server(answer) as url:
        outcome = await attack(url, HostileConnection("a request", request("GET", "/")), 0.2)
    assert outcome.fault == "the gateway keeps the connection"
    assert outcome.silence_s >= 0.3


def test_half_a_body_may_be_kept_for_as_long_as_aiohttp_lingers_and_silence_may_not() -> None:
    found = {each.name: each for each in connections(MODEL)}
    silent, half = found["a connection that says nothing"], found["half a body and silence"]
    assert sockets.allowed_s(silent, 5.0) == 5.0 + sockets.BUSY_S
    assert sockets.allowed_s(half, 5.0) == 5.0 + sockets.BUSY_S + sockets.LINGER_S


# --- roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["verifier", "gateway", "drafter"])
def test_an_attack_that_reached_no_session_is_a_violation(role: str) -> None:
    figures = RoleFigures(role, 100, 1.0, {}, denied=0, num_sessions=1, num_equal=9, num_left_out=0, disturbed=[])
    assert violations_of(figures) == []
    assert violations_of(replace(figures, num_sessions=0)) == [f"{role}: it had no session, so its attack says nothing"]


def test_a_controller_has_no_sessions_and_a_denied_packet_is_a_violation() -> None:
    assert violations_of(RoleFigures("controller", 100, 1.0, {}, 2, 0, 9, 0, [])) == [
        "controller: 2 packets were denied that the key allows"
    ]
