"""GET /v1/dsd/windows: which windows controllers have decided, and why."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest

from services.gateway.fleet import windows
from services.gateway.fleet.windows import DecidedWindows
from services.gateway.http.fleet_api import pair_windows
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Reason, WindowDecision
from shared.protocol.subjects import new_instance_id
from tests.gateway.conftest import World, until
from tests.gateway.fakes import FakeDrafter, FakeVerifier
from tests.gateway.http.test_openapi import conform

REASON = Reason(
    num_sessions=3, acceptance=0.75, draft_ms=9.5, rtt_ms=30.0, pass_ms=48.0, tpot_ms=21.0, queue=0.25, batch=2.5
)


@dataclass
class Pair:
    """A live drafter and a live verifier, and a controller that decides on them."""

    world: World
    drafter: FakeDrafter
    verifier: FakeVerifier
    bus: Bus
    controller_id: str

    def decision(self, window: int, sequence: int, reason: Reason | None = REASON) -> WindowDecision:
        drafter_id, verifier_id = self.drafter.instance_id, self.verifier.instance_id
        return WindowDecision(drafter_id, verifier_id, window, 2, True, "ladder", sequence, 0.25, reason)

    async def decide(self, decision: WindowDecision) -> None:
        """Returns when the gateway has heard it."""
        await self.bus.publish(
            subjects.to("drafter", decision.drafter_id, WindowDecision, self.controller_id), decision
        )
        heard = self.world.gateway.sessions.windows
        await until(lambda: any(each.decision == decision for each in heard))

    async def told(self) -> list[dict[str, Any]]:
        response = await self.world.client.get("/v1/dsd/windows")
        assert response.status == 200
        answer = await response.json()
        conform(answer, "WindowList")
        return answer["windows"]


@pytest.fixture
async def pair(world: World) -> AsyncIterator[Pair]:
    bus, controller_id = world.network.connect(), new_instance_id("controller")
    yield Pair(world, await world.drafter("edge"), await world.verifier("cloud"), bus, controller_id)
    await bus.close()


async def test_it_tells_the_newest_decision_of_a_pair_with_its_inputs(pair: Pair) -> None:
    assert await pair.told() == []
    for decision in (pair.decision(4, sequence=6), pair.decision(12, sequence=7)):
        await pair.decide(decision)
    (told,) = await pair.told()
    assert 0 <= told.pop("age_ms") < 10_000
    assert told == {
        "drafter_id": pair.drafter.instance_id,
        "verifier_id": pair.verifier.instance_id,
        "window": 12,
        "chunk": 2,
        "free_run": True,
        "min_confidence": 0.25,
        "policy": "ladder",
        "reason": {
            "num_sessions": 3,
            "acceptance": 0.75,
            "draft_ms": 9.5,
            "rtt_ms": 30.0,
            "pass_ms": 48.0,
            "tpot_ms": 21.0,
            "queue": 0.25,
            "batch": 2.5,
        },
        "controller_id": pair.controller_id,
        "sequence": 7,
    }


async def test_the_age_is_that_of_the_newest_decision(pair: Pair) -> None:
    sessions, now = pair.world.gateway.sessions, time.monotonic()
    sessions.windows.observe(pair.decision(4, sequence=1), pair.controller_id, now - 2.0)
    sessions.windows.observe(pair.decision(4, sequence=2), pair.controller_id, now - 0.5)
    assert [each.age_ms for each in pair_windows(sessions, now)] == [500.0]


async def test_a_decision_without_reason_or_judged_guesses_is_told_as_such(pair: Pair) -> None:
    await pair.decide(pair.decision(4, sequence=1, reason=None))
    assert [each["reason"] for each in await pair.told()] == [None]
    await pair.decide(pair.decision(4, sequence=2, reason=msgspec.structs.replace(REASON, acceptance=None)))
    assert [each["reason"]["acceptance"] for each in await pair.told()] == [None]


@pytest.mark.parametrize("gone", ["drafter", "verifier"])
async def test_a_pair_is_forgotten_when_its_drafter_or_its_verifier_is_gone(
    pair: Pair, gone: Literal["drafter", "verifier"]
) -> None:
    await pair.decide(pair.decision(4, sequence=1))
    assert len(await pair.told()) == 1
    peer = pair.drafter if gone == "drafter" else pair.verifier
    await peer.kill()
    await until(lambda: not pair.world.knows(peer))
    assert await pair.told() == []


async def test_a_pair_that_was_never_alive_is_not_told(pair: Pair) -> None:
    await pair.decide(msgspec.structs.replace(pair.decision(4, sequence=1), verifier_id=new_instance_id("cloud")))
    assert await pair.told() == []


async def test_pairs_come_in_the_order_of_their_ids_and_the_fleet_tells_the_same(pair: Pair) -> None:
    other = await pair.world.drafter("an-edge")
    await pair.decide(pair.decision(4, sequence=1))
    await pair.decide(msgspec.structs.replace(pair.decision(6, sequence=2), drafter_id=other.instance_id))
    told = await pair.told()
    assert [each["window"] for each in told] == [6, 4]
    fleet = await (await pair.world.client.get("/dsd/fleet")).json()
    assert [without_age(each) for each in fleet["windows"]] == [without_age(each) for each in told]


def without_age(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "age_ms"}


def test_the_oldest_pairs_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_PAIRS", 2)
    decided, verifier_id = DecidedWindows(), new_instance_id("cloud")
    drafter_ids = [new_instance_id("edge") for _ in range(3)]
    for number, drafter_id in enumerate([*drafter_ids[:2], drafter_ids[0], drafter_ids[2]]):
        decision = WindowDecision(drafter_id, verifier_id, 4, 2, True, "ladder", number)
        decided.observe(decision, new_instance_id("controller"), now=float(number))
    assert [heard.decision.drafter_id for heard in decided] == [drafter_ids[0], drafter_ids[2]]
    assert [decided.window(drafter_id, verifier_id) for drafter_id in drafter_ids] == [4, None, 4]
