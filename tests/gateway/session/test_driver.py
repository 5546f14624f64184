"""A session's driver: it asks and moves whatever the owner does, and it ends with the owner's block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.session.generation import Generation
from services.gateway.session.session import Session
from shared.protocol import subjects
from shared.protocol.messages import Close, Open, Opened, Poll, Sampling, Verdict
from tests.gateway.conftest import WAIT_S, World, a_world, until
from tests.gateway.fakes import MODEL, FakeVerifier
from tests.gateway.fleet.test_peers import generation
from tests.gateway.session.leaks import nothing_left

LONG = "the quick brown fox 😀 and hello world, " * 8
PASS_S = 0.01


def order(**changes: object) -> Generation:
    return generation(model=MODEL, speculation=None, **changes)


def drivers() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("session ")]


def cut(world: World, verifier: FakeVerifier, kind: type[Opened] | type[Verdict]) -> str:
    """Nothing of this kind reaches the gateway any more, until the network mends the returned subject."""
    subject = subjects.to("gateway", world.gateway.sessions.instance_id, kind, verifier.instance_id)
    world.network.cut(subject)
    return subject


@pytest.fixture
async def long_world(folder: Path) -> AsyncIterator[World]:
    async with a_world(folder) as world:
        world.answer = LONG
        yield world


async def test_a_session_moves_to_an_idle_verifier_while_its_owner_takes_nothing(long_world: World) -> None:
    world = long_world
    first = await world.verifier("first", 0.2)
    async with world.gateway.sessions.live(order(max_tokens=40)) as live:
        await live.opened()
        second = await world.verifier("second", PASS_S)
        first.mute = True
        await until(lambda: bool(second.of(Open)))
        assert first.of(Poll), "it was asked before it was given up"
        await until(lambda: live.session.phase == "over")
        text = [each.token_id async for some in live.tokens() for each in some]
        assert text == world.script(order().prompt_ids)[:40]
    assert not drivers()
    await world.no_session_is_left()


async def test_a_choice_is_polled_while_another_one_waits_for_its_verifier(long_world: World) -> None:
    world = long_world
    verifier = await world.verifier(pass_s=PASS_S)
    verifier.deaf_seeds = {8}
    cut(world, verifier, Verdict)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "seed": 7, "n": 2}
    asking = asyncio.create_task(world.client.post("/v1/chat/completions", json=body))
    await until(lambda: bool(verifier.of(Poll)))
    (opened,) = {opened.session_id for opened in verifier.of(Open) if opened.sampling.seed == 7}
    assert {poll.session_id for poll in verifier.of(Poll)} == {opened}
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await world.no_session_is_left()


async def test_what_ends_the_driver_reaches_the_owner_and_the_session_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = await world.verifier()
    cut(world, verifier, Opened)
    cut(world, verifier, Verdict)

    def broken(session: Session, now: float) -> None:
        raise RuntimeError("broken by the test")

    monkeypatch.setattr(Session, "on_timer", broken)
    async with nothing_left(world):
        with pytest.raises(RuntimeError, match="broken by the test"):
            async with world.gateway.sessions.live(order()) as live:
                await live.opened()
        await until(lambda: bool(verifier.of(Close)))


async def test_an_owner_that_is_cancelled_twice_leaves_no_driver_and_no_session(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_world(folder, heartbeat_s=10.0) as world:
        await cancelled_twice(world, monkeypatch)


async def cancelled_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.verifier(pass_s=60.0)  # it says nothing that could remind the gateway
    sessions, stuck = world.gateway.sessions, asyncio.Event()

    async def own() -> None:
        async with sessions.live(order()) as live:
            await live.opened()
            await asyncio.Event().wait()

    async def publish(*_: object, **__: object) -> None:
        stuck.set()
        await asyncio.Event().wait()

    owner = asyncio.create_task(own())
    await until(lambda: any(live.session.was_opened for live in sessions._live.values()))
    (session_id,) = sessions._live
    with monkeypatch.context() as patched:
        patched.setattr(sessions._bus, "publish", publish)
        owner.cancel()
        await stuck.wait()
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)
        await until(lambda: not drivers())
        assert [send.message for send in sessions._strays] == [Close(session_id, 1)], "what is left to send"
    assert len(sessions) == 0
    await sessions.send_heartbeat(10.0, [], draining=False)
    await world.no_session_is_left()


async def test_sessions_that_wait_are_woken_as_often_as_they_ask(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = await world.verifier()
    verifier.refuses = "overloaded"
    num, num_calls, on_timer = 200, 0, Session.on_timer

    def counted(session: Session, now: float) -> None:
        nonlocal num_calls
        num_calls += 1
        on_timer(session, now)

    monkeypatch.setattr(Session, "on_timer", counted)

    async def wait(number: int) -> None:
        async with world.gateway.sessions.live(
            order(session_id=f"{number:032x}", sampling=Sampling(seed=number))
        ) as live:
            await live.opened()

    async with nothing_left(world):
        owners = [asyncio.create_task(wait(number)) for number in range(num)]
        await until(lambda: len(verifier.of(Open)) >= 3 * num)
        assert num_calls <= 2 * len(verifier.of(Open)), "a look for the try, and one that finds it put off"
        for owner in owners:
            owner.cancel()
        await asyncio.gather(*owners, return_exceptions=True)


async def test_a_lost_verdict_is_asked_for_at_once_though_the_timer_was_put_off(folder: Path) -> None:
    far = {"open_timeout_s": 2 * WAIT_S, "poll_after_s": 2 * WAIT_S, "session_timeout_s": 6 * WAIT_S}
    async with a_world(folder, **far) as world:
        world.answer = LONG
        verifier = await world.verifier(pass_s=PASS_S)
        async with world.gateway.sessions.live(order(max_tokens=100)) as live:
            await until(lambda: live.session.num_tokens > 3)
            verdicts = cut(world, verifier, Verdict)
            await asyncio.sleep(5 * PASS_S)
            world.network.mend(verdicts)
            await until(lambda: live.session.phase == "over")
            assert verifier.of(Poll)
            text = [each.token_id async for some in live.tokens() for each in some]
        assert text == world.script(order().prompt_ids)[:100]
