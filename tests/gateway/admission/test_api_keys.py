"""API keys: the file, answers to clients without a key, limits, and that no key leaks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import structlog

from services.gateway.admission import api_keys as keys
from services.gateway.admission.api_keys import BadKeyFile, KeyFile, digest, new_key, parse
from shared.protocol.messages import Open, Speculate
from tests.gateway.conftest import TOKENIZER, Clock, World, a_world, ids_of, until
from tests.gateway.fakes import MODEL

CHAT = "/v1/chat/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
KEYS = {"alice": new_key(), "bob": new_key()}


def entry(name: str, key: str, **limits: int) -> str:
    return "\n".join([f"[{name}]", f'sha256 = "{digest(key).hex()}"', *(f"{k} = {v}" for k, v in limits.items()), ""])


def bearer(key: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


def write(file: Path, *entries: str) -> None:
    """Replaces the file as a whole, as docs/api.md asks for."""
    new = file.with_suffix(".new")
    new.write_text("".join(entries))
    new.replace(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write(path, *(entry(name, key) for name, key in KEYS.items()))
    return path


@pytest.fixture
async def keyed(folder: Path, file: Path) -> AsyncIterator[World]:
    async with a_world(folder, api_keys_file=str(file)) as world:
        await world.verifier()
        yield world


async def status(world: World, key: str) -> int:
    return (await world.client.post(CHAT, json=ASKED, headers=bearer(key))).status


@asynccontextmanager
async def openai_client(world: World, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://{world.client.host}:{world.client.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept() -> None:
    key = new_key()
    assert key.startswith(keys.PREFIX)
    assert len(key) >= len(keys.PREFIX) + 43
    assert key != new_key()
    ring = parse(entry("alice", key).encode())
    found = ring.find(key)
    assert found is not None
    assert found.name == "alice"
    assert digest(key) == hashlib.sha256(key.encode()).digest()
    assert key not in repr(vars(ring))
    assert ring.find(key + "x") is None
    assert ring.find("") is None


def test_every_entry_is_compared_so_that_time_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = parse(entry("alice", KEYS["alice"]).encode() + "".join(entry(f"k{i}", new_key()) for i in range(3)).encode())
    compared: list[bytes] = []

    class Hmac:
        @staticmethod
        def compare_digest(known: bytes, presented: bytes) -> bool:
            compared.append(known)
            return known == presented

    monkeypatch.setattr(keys, "hmac", Hmac)
    for presented in (new_key(), KEYS["alice"]):
        compared.clear()
        ring.find(presented)
        assert len(set(compared)) == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no key"),
        ("[alice", "not valid TOML"),
        ("\udcff", "not valid TOML"),
        ("alice = 1", "alice"),
        ("[alice]\n", "alice.sha256"),
        ('[alice]\nsha256 = "abc"', "alice.sha256"),
        (entry("alice", "x", requests_per_minute=0), "alice.requests_per_minute"),
        (entry("alice", "x") + "max_session = 1", "alice.max_session"),
        (entry("alice", "x") + entry("bob", "x"), "alice and bob"),
        (entry("alice", "x") + entry("alice", "y"), "not valid TOML"),
        (entry('"dsd-SECRET"', "x"), "name must match"),
        (entry("alice", "x") + "drafters = ['site_*']", "alice.drafters"),
        (entry("alice", "x") + "drafters = 'site-a'", "alice.drafters"),
    ],
)
def test_a_file_that_says_something_else_is_refused_and_says_why(text: str, told: str) -> None:
    with pytest.raises(BadKeyFile, match=told) as refused:
        parse(text.encode(errors="surrogateescape"))
    assert "\n" not in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_sessions_share_a_cache_by_key_on_every_gateway_and_by_nothing_else() -> None:
    alice, again, bob, renewed = (
        parse(entry(name, key, max_sessions=limit).encode()).find(key)
        for name, key, limit in (("alice", "x", 1), ("alice", "x", 2), ("bob", "y", 1), ("alice", "z", 1))
    )
    assert alice is not None
    assert again is not None
    assert bob is not None
    assert renewed is not None
    assert alice.cache_scope == again.cache_scope
    assert len({alice.cache_scope, bob.cache_scope, renewed.cache_scope, keys.OPEN_SCOPE}) == 4
    assert len(alice.cache_scope) <= 64
    assert alice.cache_scope != digest("x").hex(), "it is not what the file has either"


async def test_a_changed_file_is_taken_and_a_bad_one_told_once(file: Path) -> None:
    known = KeyFile(file)
    assert not await known.reload()
    for spoil in (lambda: write(file, "["), lambda: write(file, "[["), lambda: os.remove(file)):
        spoil()
        with pytest.raises(BadKeyFile):
            await known.reload()
        assert not await known.reload(), "told before"
        assert known.ring.names == set(KEYS)
    write(file, entry("carol", "x"))
    assert await known.reload()
    assert known.ring.names == {"carol"}


async def test_a_file_that_cannot_be_read_in_time_is_told_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, ends = KeyFile(file), threading.Event()
    monkeypatch.setattr(keys, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(keys, "_look", lambda path: ends.wait())
    try:
        with pytest.raises(BadKeyFile, match=r"could not be read within 0\.2 s"):
            await known.reload()
        assert not await known.reload(), "told before"
        assert known.ring.names == set(KEYS)
    finally:
        ends.set()


async def test_a_process_that_was_suspended_while_it_read_refuses_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its loop nor its thread ran meanwhile, but the clock did."""
    known, goes_on = KeyFile(file), threading.Event()

    def suspended() -> None:
        time.sleep(1.1 * keys.READ_TIMEOUT_S)
        goes_on.set()

    def look(path: Path) -> bytes:
        goes_on.wait()
        return path.read_bytes()

    monkeypatch.setattr(keys, "READ_TIMEOUT_S", 2.0)
    monkeypatch.setattr(keys, "_look", look)
    reload = asyncio.ensure_future(known.reload())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(suspended)
    assert not await reload
    write(file, entry("carol", "x"))
    assert await known.reload()


def test_the_command_makes_a_key_that_its_entry_lets_in(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.gateway.new_key", "alice"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    key = done.stderr.strip()
    assert key not in done.stdout
    assert set(tomllib.loads(done.stdout)) == {"alice"}
    found = parse(done.stdout.encode()).find(key)
    assert found is not None
    assert found.name == "alice"
    wrong = subprocess.run([*command[:-1], "A B"], capture_output=True, text=True, timeout=60, check=False)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


# --- at the gateway ---------------------------------------------------------------------------------------------------


async def test_without_a_valid_key_the_api_answers_401_and_does_nothing(keyed: World) -> None:
    (verifier,) = keyed.peers
    refusals: list[dict[str, str]] = [
        {},
        bearer(new_key()),
        bearer(""),
        bearer(KEYS["alice"], scheme="Basic"),
        bearer(KEYS["alice"][:-1]),
        {"Authorization": KEYS["alice"]},
        {"Authorization": "Bearer \xff\xfe"},
    ]
    for headers in refusals:
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/nothing"), ("GET", "/dsd/fleet")):
            response = await keyed.client.request(method, path, headers=headers)
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            error = (await response.json())["error"]
            assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert verifier.of(Open) == []
    assert keyed.count("admission_rejections_total", reason="invalid_api_key") == 4 * len(refusals)
    for path in ("/healthz", "/readyz", "/health", "/metrics", "/openapi.json"):
        assert (await keyed.client.get(path)).status == 200
    assert (await keyed.client.get("/dsd/fleet", headers=bearer(KEYS["bob"], scheme="bearer"))).status == 200


async def test_the_key_s_name_is_counted_and_logged_and_the_key_is_not(keyed: World, file: Path) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        (verifier,) = keyed.peers
        verifier.refuses = "internal"
        assert await status(keyed, KEYS["alice"]) == 500
        verifier.refuses, verifier.pass_s = None, 0.1
        hasty = {**ASKED, "stream": True, "dsd": {"timeout_s": 0.3}}
        broken_off = await keyed.client.post(CHAT, json=hasty, headers=bearer(KEYS["alice"]))
        assert b"deadline_exceeded" in await broken_off.read()
        assert await status(keyed, new_key()) == 401
        write(file, entry("bob", KEYS["bob"]))
        await until(lambda: keyed.count("keys") == 1)
    assert [event["key"] for event in logged if event["event"] == "answer broken off"] == ["alice"]
    metrics = await (await keyed.client.get("/metrics")).text()
    for key in KEYS.values():
        assert key not in repr(logged) + metrics
        assert digest(key).hex() not in repr(logged) + metrics
    assert keyed.count("key_requests_total", key="alice") == 0, "its labels are gone with it"
    assert await status(keyed, KEYS["bob"]) == 200
    assert keyed.count("key_requests_total", key="bob") == 1
    assert keyed.count("key_tokens_total", key="bob") > 5


async def test_a_changed_file_counts_without_a_restart_and_a_broken_one_changes_nothing(
    keyed: World, file: Path
) -> None:
    assert await status(keyed, KEYS["alice"]) == 200
    write(file, "[alice]\nsha256 = 5\n")
    await until(lambda: keyed.count("key_reloads_total", outcome="refused") == 1)
    assert await status(keyed, KEYS["alice"]) == 200
    carol = new_key()
    write(file, entry("carol", carol), entry("bob", KEYS["bob"]))
    await until(lambda: keyed.count("key_reloads_total", outcome="taken") == 1)
    assert await status(keyed, carol) == 200
    assert await status(keyed, KEYS["alice"]) == 401
    assert await status(keyed, KEYS["bob"]) == 200


async def test_an_answer_under_way_outlives_its_key(keyed: World, file: Path) -> None:
    (verifier,) = keyed.peers
    verifier.pass_s = 0.05
    asking = asyncio.create_task(keyed.client.post(CHAT, json=ASKED, headers=bearer(KEYS["alice"])))
    await until(lambda: len(verifier.sessions) == 1)
    write(file, entry("bob", KEYS["bob"]))
    await until(lambda: keyed.count("keys") == 1)
    assert (await asking).status == 200


async def test_sessions_carry_their_key_s_cache_scope(keyed: World) -> None:
    (verifier,) = keyed.peers
    drafter = await keyed.drafter("site-a-0")
    for name in ("alice", "bob", "alice"):
        await status(keyed, KEYS[name])
    first, second, third = (order.cache_scope for order in verifier.of(Open) if isinstance(order, Open))
    assert first == third != second
    assert first is not None
    assert [asked.cache_scope for asked in drafter.of(Speculate) if isinstance(asked, Speculate)] == [
        first,
        second,
        third,
    ]


async def test_the_prompts_of_a_key_go_to_the_drafters_that_it_names_alone(folder: Path, file: Path) -> None:
    write(file, entry("alice", KEYS["alice"]) + 'drafters = ["site-b-*"]\n', entry("bob", KEYS["bob"]))
    async with a_world(folder, api_keys_file=str(file)) as world:
        await world.verifier()
        other, named = await world.drafter("site-a-0"), await world.drafter("site-b-0")
        for _ in range(4):
            assert await status(world, KEYS["alice"]) == 200
        assert not other.of(Speculate)
        assert named.of(Speculate)
        wanted = {**ASKED, "dsd": {"drafter": "site-a-0"}}
        refused = await world.client.post(CHAT, json=wanted, headers=bearer(KEYS["alice"]))
        assert (refused.status, (await refused.json())["error"]["code"]) == (400, "unknown_drafter")
        assert (await world.client.post(CHAT, json=wanted, headers=bearer(KEYS["bob"]))).status == 200


async def test_without_a_file_of_keys_all_may_ask_and_share_one_scope(world: World) -> None:
    verifier = await world.verifier()
    assert (await world.client.post(CHAT, json=ASKED)).status == 200
    assert await status(world, "anything") == 200
    assert [order.cache_scope for order in verifier.of(Open) if isinstance(order, Open)] == [keys.OPEN_SCOPE] * 2
    assert world.count("keys") == 0


async def test_the_openai_client_is_let_in_with_a_key_and_told_its_limits(
    folder: Path, file: Path, clock: Clock
) -> None:
    write(file, entry("alice", KEYS["alice"], requests_per_minute=3), entry("bob", KEYS["bob"]))
    async with a_world(folder, api_keys_file=str(file)) as world:
        await world.verifier()
        asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        async with openai_client(world, "wrong") as client:
            with pytest.raises(openai.AuthenticationError) as unknown:
                await client.chat.completions.create(**asked)
            assert unknown.value.code == "invalid_api_key"
        async with openai_client(world, KEYS["alice"]) as client:
            assert [model.id async for model in client.models.list()] == [MODEL]
            for _ in range(3):
                assert (await client.chat.completions.create(**asked)).choices[0].message.content == world.answer
            with pytest.raises(openai.RateLimitError, match="requests_per_minute") as refused:
                await client.chat.completions.create(**asked)
            assert refused.value.code == "rate_limit_exceeded"
            clock.now += int(refused.value.response.headers["Retry-After"])
            assert (await client.chat.completions.create(**asked)).choices[0].message.content == world.answer
        async with openai_client(world, KEYS["bob"]) as client:
            assert (await client.chat.completions.create(**asked)).choices[0].message.content == world.answer
        assert world.count("admission_rejections_total", reason="requests_per_minute") == 1


@pytest.mark.parametrize("breaks_off", [True, False])
async def test_tokens_are_charged_when_the_answer_ends_or_breaks_off(
    folder: Path, file: Path, clock: Clock, breaks_off: bool
) -> None:
    write(file, entry("alice", KEYS["alice"], tokens_per_minute=8))
    async with a_world(folder, api_keys_file=str(file)) as world:
        verifier = await world.verifier(pass_s=0.005)
        world.answer = "hello world " * (40 if breaks_off else 1)
        response = await world.client.post(CHAT, json={**ASKED, "stream": True}, headers=bearer(KEYS["alice"]))
        assert response.status == 200
        if breaks_off:
            await response.content.readuntil(b"hello")
            response.close()
        else:
            await response.read()
        await world.no_session_is_left()
        await until(lambda: world.count("key_requests_total", key="alice") == 1)
        (order,) = verifier.of(Open)
        assert isinstance(order, Open)
        assert world.count("key_tokens_total", key="alice") > len(order.prompt_ids)
        refused = await world.client.post(CHAT, json=ASKED, headers=bearer(KEYS["alice"]))
        assert refused.status == 429
        assert "tokens_per_minute" in (await refused.json())["error"]["message"]
        clock.now += int(refused.headers["Retry-After"])
        assert await status(world, KEYS["alice"]) == 200


async def test_every_prompt_is_charged_once_whatever_its_choices_and_its_likeness(folder: Path, file: Path) -> None:
    async with a_world(folder, api_keys_file=str(file)) as world:
        await world.verifier()
        charged = 0.0
        for prompts in (["once", "once"], ["once", "upon a time"], [[5, 6, 7]] * 3):
            asked = {"model": MODEL, "prompt": prompts, "n": 2, "max_tokens": 3}
            response = await world.client.post("/v1/completions", json=asked, headers=bearer(KEYS["alice"]))
            usage = (await response.json())["usage"]
            assert usage["completion_tokens"] == 2 * 3 * len(prompts)
            charged += usage["total_tokens"]
            await world.no_session_is_left()
            assert world.count("key_tokens_total", key="alice") == charged


@pytest.mark.parametrize("n", [1, 2])
async def test_tokens_behind_a_stop_string_are_not_charged(folder: Path, file: Path, n: int) -> None:
    async with a_world(folder, api_keys_file=str(file)) as world:
        verifier = await world.verifier(pass_s=0.05)  # its second verdict brings guesses, behind the stop string too
        await world.drafter()
        verifier.by_seed = {8: ids_of("a dim, deep den " * 10)}
        stop = TOKENIZER.decode(ids_of(world.answer)[1:2])
        asked = {**ASKED, "n": n, "seed": 7, "stop": stop, "max_tokens": 20}
        body = await (await world.client.post(CHAT, json=asked, headers=bearer(KEYS["alice"]))).json()
        assert body["usage"]["completion_tokens"] == 2 + (n - 1) * 20
        assert body["dsd"]["accepted"] >= 3
        await until(lambda: world.count("key_requests_total", key="alice") == 1)
        assert world.count("key_tokens_total", key="alice") == body["usage"]["total_tokens"]


async def test_a_key_has_its_own_number_of_answers_under_way_or_waiting(folder: Path, file: Path) -> None:
    write(file, entry("alice", KEYS["alice"], max_sessions=2), entry("bob", KEYS["bob"]))
    async with a_world(folder, api_keys_file=str(file), max_sessions=1) as world:
        await world.verifier(pass_s=0.02)
        url, alice = CHAT, bearer(KEYS["alice"])
        asking = [asyncio.create_task(world.client.post(url, json=ASKED, headers=alice)) for _ in range(2)]
        await until(lambda: world.count("num_requests_waiting") == 1)
        refused = await world.client.post(CHAT, json=ASKED, headers=alice)
        assert refused.status == 429
        assert "max_sessions" in (await refused.json())["error"]["message"]
        asking.append(asyncio.create_task(world.client.post(CHAT, json=ASKED, headers=bearer(KEYS["bob"]))))
        assert [response.status for response in await asyncio.gather(*asking)] == [200] * 3
        assert await status(world, KEYS["alice"]) == 200


async def test_more_choices_than_a_key_may_ever_have_are_no_matter_of_waiting(folder: Path, file: Path) -> None:
    write(file, entry("alice", KEYS["alice"], max_sessions=2))
    async with a_world(folder, api_keys_file=str(file)) as world:
        await world.verifier()
        many = await world.client.post(CHAT, json={**ASKED, "n": 3}, headers=bearer(KEYS["alice"]))
        assert (many.status, (await many.json())["error"]["param"]) == (400, "n")
        two = await world.client.post(CHAT, json={**ASKED, "n": 2}, headers=bearer(KEYS["alice"]))
        assert two.status == 200


async def test_a_full_queue_costs_a_key_no_request_of_its_limit(folder: Path, file: Path, clock: Clock) -> None:
    write(file, entry("alice", KEYS["alice"], requests_per_minute=2))
    async with a_world(folder, api_keys_file=str(file), max_sessions=1, max_queue=0) as world:
        await world.verifier(pass_s=0.02)
        first = asyncio.create_task(world.client.post(CHAT, json=ASKED, headers=bearer(KEYS["alice"])))
        await until(lambda: len(world.gateway.sessions) == 1)
        assert [await status(world, KEYS["alice"]) for _ in range(3)] == [503] * 3
        assert (await first).status == 200
        assert [await status(world, KEYS["alice"]) for _ in range(2)] == [200, 429]
