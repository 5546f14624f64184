"""The short form of `make hostile`: hostile HTTP clients, and hostile peers with each role's key."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from benchmarks.hostile.answers import Answer, documented_errors, fault_of
from benchmarks.hostile.bodies import CHAT, HostileBody, mutated, systematic
from benchmarks.hostile.bodies import KINDS as BODIES
from benchmarks.hostile.flood import Flood, all_bodies, attack_all, send_all
from benchmarks.hostile.honest import HonestClients
from benchmarks.hostile.messages import Known, packets
from benchmarks.hostile.role_attack import attack_as, known_of, violations_of
from benchmarks.hostile.sockets import answers_in, connections
from benchmarks.hostile.system import HOSTILE
from services.gateway.errors import ApiError
from shared.protocol.messages import KINDS, MalformedMessage, decode
from tests.benchmarks.hostile.small_system import small_system
from tests.gateway.conftest import a_world
from tests.gateway.fakes import MODEL
from tests.gateway.tiny import make_folder

SEED = 20
NUM_BODIES, NUM_PACKETS, RATE = 800, 800, 400.0
TIMEOUT_S = 5.0  # longer than a busy machine needs to read what has come

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


async def test_hostile_requests_are_answered_as_documented_and_change_no_text(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    options = {"http_keepalive_s": TIMEOUT_S, "client_timeout_s": TIMEOUT_S, "default_max_tokens": 4}
    async with a_world(make_folder(tmp_path / "target"), **options) as world:
        await world.verifier(pass_s=0.0)
        url = str(world.client.make_url("")).rstrip("/")
        honest, bodies, sockets = HonestClients(url, MODEL, http), Flood(), Flood()
        quick = [each for each in connections(MODEL) if not each.waits]
        await honest.learn()
        async with honest.asking():
            await send_all(url, all_bodies(MODEL, SEED, NUM_BODIES), 8, bodies)
            await attack_all(url, quick, 64, TIMEOUT_S, sockets)
        await world.no_session_is_left()
    assert [str(each) for each in [*bodies.violations, *sockets.violations]] == []
    assert honest.disturbed == []
    assert honest.num_equal > 4
    assert bodies.num_requests == NUM_BODIES
    assert {"200", "400 invalid_json", "400 invalid_value", "400 unknown_parameter"} <= set(bodies.counts)


async def test_hostile_peers_with_the_key_of_any_role_end_no_service_and_change_no_text(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async with small_system(tmp_path) as system:
        honest = HonestClients(system.url, MODEL, http, max_tokens=12)
        await honest.learn()
        known = await known_of(system.url, MODEL, honest)
        for role, name in HOSTILE.items():
            figures = await attack_as(system.access, role, name, replace(known), honest, NUM_PACKETS, RATE, SEED)
            assert figures.num_packets >= NUM_PACKETS
            assert set(figures.types) == set(KINDS)
            assert violations_of(figures) == [], "it sends what its key allows, and has sessions"
            assert figures.disturbed == []
            assert not [task for task in system.tasks.values() if task.done()], f"a {role} ended a service"
            for prompt in honest.prompts[:2]:
                await honest.compare(prompt)
            assert honest.disturbed == []
        assert honest.num_equal > 2 * len(HOSTILE)
        assert min(system.dropped(name) for name in ("gateway", "verifier-0", "drafter-0", "controller")) > 0
        assert [name for name in system.registries if system.failed(name)] == []


def test_a_body_follows_from_seed_and_number() -> None:
    assert [mutated(MODEL, 3, n) for n in range(200)] == [mutated(MODEL, 3, n) for n in range(200)]
    assert len({mutated(MODEL, seed, 0).raw for seed in range(20)}) > 10
    names = [(body.path, body.name) for body in systematic(MODEL)]
    assert len(set(names)) > 5000


def test_packets_follow_from_the_generator_and_are_of_all_kinds_whole_and_broken() -> None:
    known = Known(
        {"gateway": ["g.0123456789ab"]}, deque(["0" * 32]), [MODEL], "me.0123456789ab", own_service="verifier"
    )
    for kind in KINDS:
        first, again = ([packets(kind, known, random.Random(n)) for n in range(300)] for _ in range(2))
        assert first == again
        read = [_is_read(parts[0]) for parts in first if len(parts) == 1]
        assert 0.1 < sum(read) / len(read) < 0.9, kind


def _is_read(packet: bytes) -> bool:
    try:
        decode(packet)
    except MalformedMessage:
        return False
    return True


BODY = HostileBody("n 3", CHAT, b'{"n": "a"}', "n")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (ApiError(400, "n: wrong", "n", "invalid_value"), None),
        (ApiError(400, "The body is not valid JSON", None, "invalid_json"), None),
        (ApiError(400, "wrong", "seed", "invalid_value"), "seed is blamed, n is wrong"),
        (ApiError(400, "wrong", None, "invalid_value"), "without the name"),
        (ApiError(500, "failed", None, "internal"), "undocumented"),
        (ApiError(503, "full", None, "queue_full"), None),
        (ApiError(503, "full", None, "surprise"), "undocumented"),
        (ApiError(418, "teapot"), "undocumented"),
    ],
)
def test_what_no_document_allows_is_a_fault(answer: ApiError, fault: str | None) -> None:
    found = fault_of(BODY, Answer(answer.status, "application/json", answer.body))
    assert (found is None) == (fault is None)
    assert fault is None or fault in (found or "")


def test_an_answer_in_another_shape_is_a_fault_and_so_is_half_a_stream() -> None:
    assert fault_of(BODY, Answer(400, "text/plain", b"400: Bad Request")) == "status 400 without an error object"
    assert fault_of(BODY, Answer(200, "text/event-stream", b"data: {}\n\n")) == "a stream without its end"
    assert fault_of(BODY, Answer(200, "text/event-stream", b"data: {}\n\ndata: [DONE]\n\n")) is None
    broken = json.dumps({"error": {"type": "server_error", "code": "internal"}}).encode()
    assert fault_of(BODY, Answer(200, "text/event-stream", b"data: " + broken + b"\n\ndata: [DONE]\n\n"))


def test_the_documented_errors_are_those_of_the_table() -> None:
    assert {status for status, _, _ in documented_errors()} == {400, 401, 404, 405, 408, 413, 417, 429, 500, 503, 504}
    assert (404, "invalid_request_error", None) in documented_errors()


def test_answers_are_told_apart_in_a_stream_of_bytes() -> None:
    one = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nab"
    assert list(answers_in(one * 3 + b"HTTP/1.1 200 OK\r\n\r\nrest")) == [(400, b"ab")] * 3 + [(200, b"rest")]


def test_connections_have_names_of_their_own() -> None:
    found = list(connections(MODEL))
    assert len({each.name for each in found}) == len(found)
    assert {each.path for each in [*systematic(MODEL)]} == set(BODIES)
