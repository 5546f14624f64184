"""Peers die, lie, forget and join late, messages get lost: the client still gets the target's own text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse

from shared.bus.memory_bus import Faults
from shared.protocol import subjects
from shared.protocol.messages import Close, Failure, Heartbeat, Open, Speculate, Tally, TokenIds, Verdict
from tests.gateway.conftest import World, a_world, until
from tests.gateway.fakes import MODEL

CHAT = "/v1/chat/completions"
LONG = "the quick brown fox 😀 and hello world, " * 8
PASS_S = 0.01


class Stream:
    """A streamed answer that is read piece by piece."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response
        self.text = ""
        self.finish: str | None = None
        self.report: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self.fingerprints: list[str] = []  # in the order of the chunks

    async def read(self, at_least: int | None = None) -> str:
        """Reads on until the text has that many characters, or to the end."""
        async with asyncio.timeout(20):
            while at_least is None or len(self.text) < at_least:
                line = (await self._response.content.readuntil(b"\n\n")).strip().removeprefix(b"data: ")
                if line == b"[DONE]":
                    break
                self._take(json.loads(line))
        return self.text

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]
            return
        if chunk["system_fingerprint"] not in self.fingerprints[-1:]:
            self.fingerprints.append(chunk["system_fingerprint"])
        (choice,) = chunk["choices"]
        self.text += choice["delta"].get("content", "")
        self.finish = choice["finish_reason"]
        self.report = chunk.get("dsd", {})


async def ask(world: World, **options: Any) -> Stream:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True, **options}
    response = await world.client.post(CHAT, json=body)
    assert response.status == 200, await response.text()
    return Stream(response)


@pytest.fixture
async def long_world(folder: Path):
    async with a_world(folder) as world:
        world.answer = LONG
        yield world


async def test_a_killed_verifier_s_sessions_go_on_at_another(long_world: World) -> None:
    world = long_world
    first = await world.verifier("first", PASS_S)
    streams = [await ask(world) for _ in range(8)]
    for stream in streams:
        await stream.read(10)
    second = await world.verifier("second", PASS_S)
    await first.kill()
    first.sessions.clear()
    for stream in streams:
        assert await stream.read() == LONG
        assert (stream.finish, stream.report["verifier"]) == ("stop", "second")
        assert stream.fingerprints == ["first-numerics", "first-numerics, second-numerics"]
    assert len(second.of(Open)) >= 8
    assert all(isinstance(order, Open) and order.term > 1 for order in second.of(Open))
    assert world.count("failovers_total") == 8
    await world.no_session_is_left()


async def test_a_whole_answer_names_the_numerics_of_all_that_worked_on_it(long_world: World) -> None:
    world = long_world
    first = await world.verifier("first", PASS_S)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    asking = asyncio.create_task(world.client.post(CHAT, json=body))
    await until(lambda: any(live.session.stream.tokens for live in world.gateway.sessions._live.values()))
    await world.verifier("second", PASS_S)
    await first.kill()
    first.sessions.clear()
    answer = await (await asking).json()
    assert answer["choices"][0]["message"]["content"] == LONG
    assert answer["system_fingerprint"] == "first-numerics, second-numerics"


async def test_a_verifier_that_comes_back_under_a_new_id_gets_its_sessions_again(long_world: World) -> None:
    world = long_world
    first = await world.verifier(pass_s=PASS_S)
    stream = await ask(world)
    await stream.read(10)
    await first.kill()
    first.sessions.clear()
    await asyncio.sleep(0.5)
    await world.verifier(pass_s=PASS_S)
    assert await stream.read() == LONG


async def test_a_verifier_that_forgot_its_sessions_gets_them_again(long_world: World) -> None:
    world = long_world
    verifier = await world.verifier(pass_s=PASS_S)
    stream = await ask(world)
    await stream.read(10)
    verifier.forget_sessions()
    assert await stream.read() == LONG
    assert stream.report["num_verdicts"] > 0


async def test_a_mute_verifier_is_left_for_another(long_world: World) -> None:
    world = long_world
    first = await world.verifier("first", PASS_S)
    stream = await ask(world)
    await stream.read(10)
    second = await world.verifier("second", PASS_S)
    first.mute = True
    assert await stream.read() == LONG
    assert len(second.of(Open)) == 1
    await world.no_session_is_left()


async def test_without_any_verifier_the_stream_ends_with_a_clear_error(folder: Path) -> None:
    async with a_world(folder, session_timeout_s=1.0) as world:
        world.answer = LONG
        verifier = await world.verifier(pass_s=PASS_S)
        stream = await ask(world)
        await stream.read(10)
        await verifier.kill()
        verifier.sessions.clear()
        text = await stream.read()
        assert stream.error is not None
        assert "no verifier" in stream.error["message"]
        assert LONG.startswith(text)
        await world.no_session_is_left()


@pytest.mark.parametrize("others", [0, 1])
async def test_a_killed_drafter_is_replaced_or_done_without(long_world: World, others: int) -> None:
    world = long_world
    verifier, drafter = await world.verifier(pass_s=PASS_S), await world.drafter("one", promised_s=0.2)
    stream = await ask(world)
    await stream.read(10)
    spare = await world.drafter("two") if others else None
    await drafter.kill()
    drafter.sessions.clear()
    assert await stream.read() == LONG
    assert stream.report["drafter"] == ("two" if others else None)
    assert stream.report["verifier"] == "verifier"
    if spare is not None:
        assert len(spare.of(Speculate)) == 1
        assert world.count("drafter_changes_total") == 1
    assert len({order.session_id for order in verifier.of(Open)}) == 1
    await world.no_session_is_left()


async def test_a_drafter_that_comes_late_is_adopted(long_world: World) -> None:
    world = long_world
    await world.verifier(pass_s=0.02)
    stream = await ask(world)
    await stream.read(10)
    drafter = await world.drafter()
    assert await stream.read() == LONG
    assert (stream.report["drafter"], len(drafter.of(Speculate))) == ("drafter", 1)
    assert stream.report["accepted"] > 0


async def test_a_drafter_that_refuses_costs_nothing(long_world: World) -> None:
    world = long_world
    await world.verifier()
    drafter = await world.drafter()
    drafter.refuses = "overloaded"
    stream = await ask(world)
    assert await stream.read() == LONG
    assert stream.report["drafter"] is None


async def test_a_refused_open_goes_to_another_verifier(long_world: World) -> None:
    world = long_world
    full = await world.verifier("full")
    full.refuses = "overloaded"
    await world.verifier("free")
    for _ in range(4):
        stream = await ask(world)
        assert await stream.read() == LONG
        assert stream.report["verifier"] == "free"


@pytest.mark.parametrize("seed", range(3))
async def test_lost_repeated_and_reordered_messages_change_no_text(folder: Path, seed: int) -> None:
    async with a_world(folder, session_timeout_s=20.0) as world:
        world.answer = LONG
        for name in ("one", "two"):
            await world.verifier(name, PASS_S)
            await world.drafter(name)
        world.network.faults = Faults(loss=0.1, duplication=0.1, reordering=0.2, hold_s=0.02)
        streams = [await ask(world, seed=seed) for _ in range(4)]
        assert [await stream.read() for stream in streams] == [LONG] * 4
        world.network.faults = Faults()


async def test_a_session_whose_close_was_lost_is_closed_when_it_speaks_again(long_world: World) -> None:
    world = long_world
    verifier = await world.verifier(pass_s=PASS_S)
    closes = subjects.to("verifier", verifier.instance_id, Close, world.gateway.sessions.instance_id)
    world.network.cut(closes)
    stream = await ask(world, stop="hello")
    assert await stream.read() == LONG[: LONG.index("hello")]
    await until(lambda: not len(world.gateway.sessions))
    assert len(verifier.sessions) == 1
    world.network.mend(closes)
    await world.no_session_is_left()
    assert len(verifier.of(Close)) >= 1


def a_lie(order: Open, term: int) -> Verdict:
    """Another text than the verifier's, which ends the answer."""
    base = len(order.prompt_ids)
    return Verdict(order.session_id, term, 0, base, TokenIds([7] * 400), 0, "stop", None, 0.0, 1, 0.0, Tally())


async def test_what_strangers_say_is_dropped(long_world: World) -> None:
    world = long_world
    verifier = await world.verifier(pass_s=PASS_S)
    stream = await ask(world)
    await stream.read(10)
    (order,) = verifier.of(Open)
    assert isinstance(order, Open)
    stranger, gateway = world.network.connect(), world.gateway.sessions.instance_id
    for sender, term in ((subjects.new_instance_id("verifier"), order.term), (verifier.instance_id, order.term - 1)):
        failure = Failure(order.session_id, term, "internal", "no", False)
        await stranger.publish(subjects.to("gateway", gateway, Verdict, sender), a_lie(order, term))
        await stranger.publish(subjects.to("gateway", gateway, Failure, sender), failure)
    await stranger.publish(subjects.to("gateway", gateway, Open, subjects.new_instance_id("verifier")), order)
    assert await stream.read() == LONG
    assert world.count("dropped_messages_total", reason="foreign sender or stale term") >= 4
    assert world.count("dropped_messages_total", reason="not for a gateway") == 1


async def test_a_verdict_under_the_verb_of_another_message_is_dropped(long_world: World) -> None:
    """A drafter may publish failures. Nothing else comes in by that right."""
    world = long_world
    verifier = await world.verifier(pass_s=PASS_S)
    stream = await ask(world)
    await stream.read(10)
    (order,) = verifier.of(Open)
    assert isinstance(order, Open)
    lie = a_lie(order, order.term)
    gateway = world.gateway.sessions.instance_id
    subject = subjects.with_verb("gateway", gateway, subjects.VERBS[Failure], verifier.instance_id)
    await world.network.connect().publish(subject, lie)
    assert await stream.read() == LONG
    assert world.count("dropped_messages_total", reason="not for a gateway") == 1
    assert stream.report["verifier"] == "verifier"


async def test_the_gateway_s_heartbeat_renews_leases(world: World) -> None:
    heard: list[str] = []
    await world.network.connect().subscribe(
        subjects.all_broadcasts(Heartbeat, "gateway"), lambda subject, _: heard.append(subjects.sender(subject))
    )
    await until(lambda: heard.count(world.gateway.sessions.instance_id) >= 3)
