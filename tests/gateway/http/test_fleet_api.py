"""GET /dsd/fleet: live instances and their load. Windows: tests/gateway/fleet/test_windows.py."""

from __future__ import annotations

import time

from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Load, Service
from shared.protocol.subjects import new_instance_id
from tests.gateway.conftest import World, until
from tests.gateway.fakes import CONTEXT, MODEL

BUSY = Load(3, 8, 100, 256, 2, 5000, 8000, 12.5, 0.25, 7.5)


async def fleet(world: World) -> dict:
    response = await world.client.get("/dsd/fleet")
    assert response.status == 200
    return await response.json()


async def beat(bus: Bus, service: Service, **changes: object) -> str:
    """The only heartbeat of an instance."""
    instance_id = new_instance_id(service)
    models = [] if service == "controller" else [MODEL]
    fields = {"interval_s": 60.0, "fingerprint": "cpu", "load": BUSY, "draining": False, **changes}
    message = Heartbeat(
        service=service, instance_id=instance_id, models=models, max_context=CONTEXT, vocab_size=320, **fields
    )
    await bus.publish(subjects.broadcast(Heartbeat, service, instance_id), message)
    return instance_id


async def test_it_tells_what_the_newest_heartbeats_said(world: World) -> None:
    bus = world.network.connect()
    verifier_id = await beat(bus, "verifier", draining=True)
    drafter_id, controller_id = await beat(bus, "drafter", provider="OpenVINO"), await beat(bus, "controller")
    alive = world.gateway.sessions.fleet.alive
    await until(lambda: bool(alive("controller", time.monotonic())))

    told = await fleet(world)

    (verifier,), (drafter,), (controller,) = told["verifiers"], told["drafters"], told["controllers"]
    ids = [each["instance_id"] for each in (verifier, drafter, controller)]
    assert ids == [verifier_id, drafter_id, controller_id]
    assert [each["name"] for each in (verifier, drafter, controller)] == ["verifier", "drafter", "controller"]
    assert [each["draining"] for each in (verifier, drafter, controller)] == [True, False, False]
    assert drafter["provider"] == "OpenVINO"
    assert drafter["rtt_ms"] == 7.5
    assert 0 <= verifier.pop("heartbeat_age_ms") < 10_000
    assert verifier == {
        "name": "verifier",
        "instance_id": verifier_id,
        "models": [MODEL],
        "fingerprint": "cpu",
        "max_context": CONTEXT,
        "num_sessions": 3,
        "max_sessions": 8,
        "queue_tokens": 100,
        "batch": 2,
        "free_kv_tokens": 5000,
        "kv_tokens": 8000,
        "step_ms": 12.5,
        "prefill_ms": 0.25,
        "draining": True,
    }
    assert told["gateway"] == {
        "name": "gateway",
        "instance_id": world.gateway.sessions.instance_id,
        "model": MODEL,
        "num_sessions": 0,
        "max_sessions": 256,
        "num_waiting": 0,
    }
    await bus.close()


async def test_it_tells_what_became_of_each_drafters_guesses_by_the_word_of_verifiers(world: World) -> None:
    await world.verifier()
    drafter = await world.drafter()
    (idle,) = (await fleet(world))["drafters"]
    assert (idle["guesses_per_s"], idle["acceptance"], idle["in_time"]) == (0, None, None)
    response = await world.client.post("/v1/completions", json={"model": MODEL, "prompt": "hello", "max_tokens": 24})
    assert response.status == 200
    (busy,) = (await fleet(world))["drafters"]
    assert busy["instance_id"] == drafter.instance_id
    assert busy["guesses_per_s"] > 0
    assert busy["acceptance"] == 1, "it knows the target's text"
    assert 0 <= busy["in_time"] <= 1


async def test_a_drafter_that_guesses_wrong_is_told_as_such(world: World) -> None:
    await world.verifier()
    drafter = await world.drafter()
    drafter.script = lambda prompt_ids: [1]
    response = await world.client.post("/v1/completions", json={"model": MODEL, "prompt": "hello", "max_tokens": 24})
    assert response.status == 200
    (told,) = (await fleet(world))["drafters"]
    assert told["acceptance"] == 0
    assert told["in_time"] is None


async def test_who_has_gone_is_told_no_more(world: World) -> None:
    verifier = await world.verifier()
    assert [each["name"] for each in (await fleet(world))["verifiers"]] == ["verifier"]
    await verifier.kill()
    await until(lambda: not world.knows(verifier))
    assert (await fleet(world))["verifiers"] == []


async def test_errors_have_the_shape_of_the_api(world: World) -> None:
    for response, status in (
        (await world.client.post("/dsd/fleet"), 405),
        (await world.client.get("/dsd/other"), 404),
    ):
        assert response.status == status
        assert (await response.json())["error"]["type"] == "invalid_request_error"
