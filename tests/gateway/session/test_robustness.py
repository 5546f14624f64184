"""Clients that send too much, too slowly or nothing, that leave, and that are too many: clear answers, and no leak."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from services.gateway.inspector import recent
from shared.protocol.messages import Close, Open
from tests.gateway.conftest import World, a_world, until
from tests.gateway.fakes import MODEL
from tests.gateway.session.leaks import grown_bytes, nothing_left

CHAT = "/v1/chat/completions"
LONG = "hello world " * 40
NUM_IDLE = 1000


def chat(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **options}


@asynccontextmanager
async def a_client(world: World) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose connections end with the block."""
    async with aiohttp.ClientSession(f"http://{world.client.host}:{world.client.port}") as client:
        yield client


@asynccontextmanager
async def raw(world: World, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A connection that has sent these bytes."""
    reader, writer = await asyncio.open_connection(world.client.host, world.client.port)
    try:
        writer.write(request)
        yield reader
    finally:
        writer.close()


async def told(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and code of a refusal."""
    return response.status, (await response.json())["error"]["code"]


async def last_event(response: aiohttp.ClientResponse) -> Any:
    """The last event of a stream that ends well: with [DONE]."""
    *_, last, done, rest = (await response.read()).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return json.loads(last.removeprefix(b"data: "))


# --- bodies and connections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells_length", [True, False])
async def test_a_body_that_is_too_large_is_refused_and_leaves_nothing(folder: Path, tells_length: bool) -> None:
    body = json.dumps(chat(user="x" * 5000)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100):
            yield body[at : at + 100]

    async with a_world(folder, max_body_bytes=2048) as world:
        verifier = await world.verifier()
        async with nothing_left(world), a_client(world) as client:
            response = await client.post(CHAT, data=body if tells_length else pieces())
            assert response.status == 413
            assert "2048" in (await response.json())["error"]["message"]
        assert verifier.of(Open) == []


@pytest.mark.parametrize("sent", [0, 1, 40])
async def test_a_body_that_stops_coming_is_refused_in_time(folder: Path, sent: int) -> None:
    body = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with (
        a_world(folder, client_timeout_s=0.2) as world,
        nothing_left(world),
        raw(world, head + body[:sent]) as reader,
        asyncio.timeout(10),
    ):
        assert b" 408 " in await reader.readline()
        assert b"0.2 s" in await reader.readuntil(b"}}")


@pytest.mark.parametrize("begun", [b"", b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_without_a_whole_request_is_closed(folder: Path, begun: bytes) -> None:
    async with (
        a_world(folder, http_keepalive_s=0.2) as world,
        nothing_left(world),
        raw(world, begun) as reader,
        asyncio.timeout(10),
    ):
        assert await reader.read() == b""


async def test_a_thousand_idle_connections_hinder_nobody_and_leave_nothing(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * NUM_IDLE + 200  # both ends are here
    if limits[0] < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, limits[1]))
    try:
        async with a_world(folder, http_keepalive_s=600.0) as world:
            await world.verifier()
            async with nothing_left(world), AsyncExitStack() as stack:
                request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
                for _ in range(NUM_IDLE):
                    reader = await stack.enter_async_context(raw(world, request))
                    assert b" 200 " in await reader.readline()
                assert len(world.client.server.runner.server.connections) == NUM_IDLE
                client = await stack.enter_async_context(a_client(world))
                answer = await (await client.post(CHAT, json=chat())).json()
                assert answer["choices"][0]["message"]["content"] == world.answer
                last = await last_event(await client.post(CHAT, json=chat(stream=True)))
                assert last["choices"][0]["finish_reason"] == "stop"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_idle_connections_are_closed_after_the_keep_alive_time(folder: Path) -> None:
    async with a_world(folder, http_keepalive_s=0.5) as world:
        await world.verifier()
        async with nothing_left(world), AsyncExitStack() as stack:
            request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
            readers = [await stack.enter_async_context(raw(world, request)) for _ in range(100)]
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(reader.read() for reader in readers))
            assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers), "answered, then closed"
            await until(lambda: not world.client.server.runner.server.connections)


# --- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_sessions_everywhere(world: World, stream: bool, n: int) -> None:
    verifier, drafter = await world.verifier(pass_s=0.02), await world.drafter()
    world.answer = LONG
    async with nothing_left(world):
        async with a_client(world) as client:
            asking = asyncio.create_task(client.post(CHAT, json=chat(stream=stream, n=n)))
            await until(lambda: len(verifier.sessions) == n and len(drafter.sessions) == n)
            if stream:
                response = await asking
                await response.content.readany()
                response.close()
            else:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: verifier.num_cut_short == n)
    assert len(drafter.of(Close)) >= n


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_takes_nothing_is_dropped_at_both_peers(folder: Path, stream: bool) -> None:
    async with a_world(folder, client_timeout_s=0.2) as world:
        await world.verifier(pass_s=0.0)
        await world.drafter()
        world.answer = "7" * 480  # with logprobs 500 kB or more, more than all buffers on the way hold
        body = json.dumps(chat(stream=stream, logprobs=True, top_logprobs=20)).encode()
        async with nothing_left(world):
            with socket.socket() as silent:
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                silent.connect((world.client.host, world.client.port))
                silent.sendall(
                    f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                await until(lambda: len(world.gateway.sessions) == 1)
                await until(lambda: not world.client.server.runner.server.connections)
                await world.no_session_is_left()


def has_unsent(world: World) -> bool:
    """Whether the server has bytes for a client that does not take them."""
    connections = world.client.server.runner.server.connections
    return any(each.transport is not None and each.transport.get_write_buffer_size() for each in connections)


@asynccontextmanager
async def slow_reader(world: World, body: dict[str, Any]) -> AsyncIterator[socket.socket]:
    """A client that has asked for more than its connection holds, and has taken nothing."""
    data = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((world.client.host, world.client.port))
        client.setblocking(False)
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        yield client


@pytest.mark.parametrize("stream", [True, False])
async def test_a_drain_lasts_until_a_slow_client_has_taken_its_answer(folder: Path, stream: bool) -> None:
    """Its slots are held as long, so it has the whole drain, not only the time in which open connections are closed."""
    async with a_world(folder) as world:
        verifier = await world.verifier(pass_s=0.0)
        world.answer = "7" * 32  # 32 kB with logprobs
        body = chat(logprobs=True, top_logprobs=20, stream=stream)
        async with nothing_left(world), slow_reader(world, body) as client:
            await until(lambda: bool(verifier.of(Close)) and has_unsent(world))
            draining = asyncio.create_task(world.gateway.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            taken, loop = b"", asyncio.get_running_loop()
            async with asyncio.timeout(20):
                while not taken.endswith(b"0\r\n\r\n" if stream else b"}}"):
                    assert not (draining.done() and has_unsent(world))
                    taken += await loop.sock_recv(client, 4096)
                await draining
        assert b"".join(re.findall(rb'"content":"(7+)"', taken)).decode() == world.answer


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_the_end_of_its_answer_counts_as_gone(folder: Path, stream: bool) -> None:
    async with a_world(folder, client_timeout_s=0.3) as world:
        await world.verifier(pass_s=0.0)
        world.answer = "7" * 32  # 32 kB with logprobs, less than a write waits for
        body = chat(logprobs=True, top_logprobs=20, stream=stream)
        with structlog.testing.capture_logs() as logged:
            async with nothing_left(world), slow_reader(world, body):
                await until(lambda: has_unsent(world))
                await until(lambda: not world.client.server.runner.server.connections)
    assert [event["event"] for event in logged].count("client gone") == 1


async def test_a_whole_answer_that_its_client_does_not_take_ends_with_the_deadline(folder: Path) -> None:
    async with a_world(folder, client_timeout_s=60.0) as world:
        verifier = await world.verifier(pass_s=0.0)
        world.answer = "7" * 32
        body = chat(logprobs=True, top_logprobs=20, dsd={"timeout_s": 6.0})
        async with nothing_left(world), slow_reader(world, body):
            await until(lambda: bool(verifier.of(Close)) and has_unsent(world))
            await until(lambda: not world.client.server.runner.server.connections)
        assert world.count("admission_rejections_total", reason="deadline_exceeded") == 1


async def test_a_client_that_leaves_the_queue_is_no_longer_in_it(folder: Path) -> None:
    async with a_world(folder, max_sessions=1) as world:
        verifier = await world.verifier(pass_s=0.02)
        async with nothing_left(world), a_client(world) as client, a_client(world) as impatient:
            first = await client.post(CHAT, json=chat(stream=True))
            waiting = asyncio.create_task(impatient.post(CHAT, json=chat()))
            await until(lambda: world.count("num_requests_waiting") == 1)
            waiting.cancel()
            await until(lambda: world.count("num_requests_waiting") == 0)
            assert world.gateway.gate.slots.num_waiting == 0
            assert not first.content.at_eof(), "the one under way goes on"
            assert len(verifier.of(Open)) == 1, "the one that left never reached a verifier"
            assert (await last_event(first))["choices"][0]["finish_reason"] == "stop"


# --- too many ---------------------------------------------------------------------------------------------------------


async def test_requests_beyond_the_slots_wait_their_turn_and_those_beyond_the_queue_are_refused(folder: Path) -> None:
    async with a_world(folder, max_sessions=2, max_queue=3) as world:
        verifier = await world.verifier(pass_s=0.01)
        async with nothing_left(world), a_client(world) as client:
            asking = []
            for seed in range(5):
                asking.append(asyncio.create_task(client.post(CHAT, json=chat(seed=seed))))
                await until(lambda: len(world.gateway.sessions) + world.count("num_requests_waiting") == len(asking))
            refused = await client.post(CHAT, json=chat())
            assert await told(refused) == (503, "queue_full")
            assert int(refused.headers["Retry-After"]) >= 1
            assert [response.status for response in await asyncio.gather(*asking)] == [200] * 5
        assert [order.sampling.seed for order in verifier.of(Open) if isinstance(order, Open)] == list(range(5))
        assert world.count("admission_rejections_total", reason="queue_full") == 1
        assert world.count("request_queue_time_seconds_count") >= 5


async def test_no_body_is_awaited_that_could_not_even_wait(folder: Path) -> None:
    async with a_world(folder, max_sessions=1, max_queue=0) as world:
        await world.verifier(pass_s=0.02)
        world.answer = LONG
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n".encode()
        async with nothing_left(world), a_client(world) as client:
            first = await client.post(CHAT, json=chat(stream=True))
            async with raw(world, head) as reader, asyncio.timeout(10):
                told = await reader.readuntil(b"}}")
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in told
            assert b'"code":"queue_full"' in told
            first.close()
        assert world.count("admission_rejections_total", reason="queue_full") == 1


async def test_a_request_that_waits_too_long_is_told_so(folder: Path) -> None:
    async with a_world(folder, max_sessions=1, queue_timeout_s=0.1) as world:
        await world.verifier(pass_s=0.05)
        world.answer = LONG
        async with nothing_left(world), a_client(world) as client:
            first = await client.post(CHAT, json=chat(stream=True))
            refused = await client.post(CHAT, json=chat())
            assert await told(refused) == (503, "queue_timeout")
            assert int(refused.headers["Retry-After"]) >= 1
            first.close()
        assert world.count("admission_rejections_total", reason="queue_timeout") == 1


async def test_choices_take_their_slots_together(folder: Path) -> None:
    async with a_world(folder, max_sessions=3) as world:
        verifier = await world.verifier(pass_s=0.01)
        async with nothing_left(world), a_client(world) as client:
            too_many = await client.post(CHAT, json=chat(n=4))
            assert too_many.status == 400
            assert (await too_many.json())["error"]["param"] == "n"
            assert verifier.of(Open) == []
            asking = [asyncio.create_task(client.post(CHAT, json=chat(n=2))) for _ in range(5)]
            while not all(task.done() for task in asking):
                assert len(world.gateway.sessions) <= 3
                await asyncio.sleep(0.005)
            assert all(task.result().status == 200 for task in asking)


async def test_those_in_the_queue_are_served_before_the_gateway_ends(folder: Path) -> None:
    async with a_world(folder, max_sessions=1) as world:
        await world.verifier(pass_s=0.01)
        async with a_client(world) as client:
            asking = [asyncio.create_task(client.post(CHAT, json=chat())) for _ in range(3)]
            await until(lambda: world.count("num_requests_waiting") == 2)
            async with asyncio.timeout(20):
                await world.gateway.drain()
            assert [response.status for response in await asyncio.gather(*asking)] == [200] * 3


async def test_those_in_the_queue_are_told_when_the_gateway_must_end(folder: Path) -> None:
    async with a_world(folder, max_sessions=1) as world:
        await world.verifier(pass_s=0.05)
        world.answer = LONG
        async with a_client(world) as client:
            first = await client.post(CHAT, json=chat(stream=True))
            waiting = asyncio.create_task(client.post(CHAT, json=chat()))
            await until(lambda: world.count("num_requests_waiting") == 1)
            world.running.cancel()
            assert await told(await waiting) == (503, "draining")
            assert (await last_event(first))["error"]["code"] == "draining"


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["gateway", "request"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_ends_an_answer_with_what_it_has(folder: Path, stream: bool, by: str) -> None:
    async with a_world(folder, **({"request_timeout_s": 0.4} if by == "gateway" else {})) as world:
        verifier = await world.verifier(pass_s=0.02)
        world.answer = LONG
        options = chat(stream=stream, **({"dsd": {"timeout_s": 0.4}} if by == "request" else {}))
        async with nothing_left(world), a_client(world) as client:
            response = await client.post(CHAT, json=options)
            if stream:
                assert response.status == 200
                error = (await last_event(response))["error"]
                assert (error["code"], error["type"]) == ("deadline_exceeded", "server_error")
                assert "0.4 s" in error["message"]
            else:
                assert await told(response) == (504, "deadline_exceeded")
            await until(lambda: verifier.num_cut_short == 1)
        assert world.count("admission_rejections_total", reason="deadline_exceeded") == 1


async def test_a_deadline_passes_in_the_queue_and_before_a_verifier_has_room_too(folder: Path) -> None:
    async with a_world(folder, max_sessions=1) as world:
        verifier = await world.verifier(pass_s=0.05)
        world.answer = LONG
        hasty = chat(dsd={"timeout_s": 0.2}, stream=True)
        async with nothing_left(world), a_client(world) as client:
            first = await client.post(CHAT, json=chat(stream=True))
            assert await told(await client.post(CHAT, json=hasty)) == (504, "deadline_exceeded")
            assert len(verifier.of(Open)) == 1, "it never left the line"
            first.close()
            await world.no_session_is_left()
            verifier.refuses = "overloaded"
            assert await told(await client.post(CHAT, json=hasty)) == (504, "deadline_exceeded")


async def test_no_deadline_is_one_and_a_longer_one_than_the_gateway_s_is_refused(folder: Path) -> None:
    async with a_world(folder, request_timeout_s=0) as world:
        await world.verifier()
        async with nothing_left(world), a_client(world) as client:
            assert (await client.post(CHAT, json=chat())).status == 200
            assert (await client.post(CHAT, json=chat(dsd={"timeout_s": 3600}))).status == 200
    async with a_world(folder, request_timeout_s=60) as world:
        await world.verifier()
        async with nothing_left(world), a_client(world) as client:
            response = await client.post(CHAT, json=chat(dsd={"timeout_s": 61}))
            assert (response.status, (await response.json())["error"]["param"]) == (400, "dsd.timeout_s")


# --- memory -----------------------------------------------------------------------------------------------------------


async def test_rounds_of_all_kinds_of_trouble_leave_no_memory_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_REQUESTS", 2)  # what the inspector keeps is complete from the first round on
    async with a_world(folder, max_sessions=2, max_queue=1, max_body_bytes=65536) as world:
        await world.verifier(pass_s=0.002)
        await world.drafter()
        world.answer = LONG

        async def trouble() -> None:
            async with a_client(world) as client:
                gone = [await client.post(CHAT, json=chat(stream=True)) for _ in range(2)]
                waiting = asyncio.create_task(client.post(CHAT, json=chat()))
                await until(lambda: world.count("num_requests_waiting") == 1)
                assert (await client.post(CHAT, json=chat())).status == 503
                waiting.cancel()
                for response in gone:
                    response.close()
                await until(lambda: not len(world.gateway.sessions))
                assert (await client.post(CHAT, json=chat(dsd={"timeout_s": 0.02}))).status == 504
                assert (await client.post(CHAT, data=b"x" * 70000)).status == 413
                assert (await client.post(CHAT, json=chat(n=2))).status == 200

        num_rounds = 8
        grown = await grown_bytes(world, trouble, num_rounds)
        assert grown < num_rounds * 4000, "a session kept is more than 20,000 bytes"
