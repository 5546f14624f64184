"""What a heartbeat and a placement cost does not grow with the fleet, and nobody is left out for it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from services.gateway.fleet.peers import MAX_CHOICES, MAX_LOOKS, PeerFleet
from services.gateway.session.placement import Placement
from shared.policies.routing import ROUTERS
from shared.protocol.messages import Heartbeat, Load
from shared.protocol.subjects import broadcast, new_instance_id
from tests.gateway.conftest import a_world, until
from tests.gateway.fleet.test_peers import MODEL, beat, generation

NUM_DRAFTERS = 2000


def site(number: int) -> str:
    return f"site-{number // 100}-drafter-{number % 100}"


def large_placement(**changes: object) -> Placement:
    """2,000 drafters, of 20 sites, and a verifier."""
    fleet = PeerFleet()
    fleet.observe(beat("v.1"), 0.0)
    for number in range(NUM_DRAFTERS):
        fleet.observe(beat(f"{site(number)}.1", "drafter", **changes), 0.0)
    return Placement(fleet, ROUTERS["jsq"](), ROUTERS["jsq8"](), random.Random(0))


def _listed(chooser: Placement, names: tuple[str, ...]) -> set[str]:
    """The drafters of these names, all of them."""
    found: set[str] = set()
    for _ in range(200):
        choices = chooser.fleet.some_choices("drafter", MODEL, 0.1, chooser.rng, lambda drafter: True, names)
        found |= {choice.instance_id for choice in choices}
    return found


def test_a_placement_looks_at_few_drafters_of_many() -> None:
    chooser, seen = large_placement(), []

    def accepts(heartbeat: Heartbeat) -> bool:
        seen.append(heartbeat.instance_id)
        return True

    found = chooser.fleet.some_choices("drafter", MODEL, 0.1, chooser.rng, accepts)
    assert len(found) == len(seen) == MAX_CHOICES


def test_a_search_that_finds_nobody_looks_at_few_drafters_of_many() -> None:
    chooser, seen = large_placement(), []

    def suits(heartbeat: Heartbeat) -> bool:
        seen.append(heartbeat.instance_id)
        return False

    assert chooser.fleet.some_choices("drafter", MODEL, 0.1, chooser.rng, suits) == []
    assert len(seen) == MAX_CHOICES + MAX_LOOKS


def test_every_drafter_of_many_gets_its_sessions() -> None:
    chooser, given = large_placement(), Counter[str]()
    for _ in range(2 * NUM_DRAFTERS):
        drafter_id = chooser.drafter(generation(), "v.1", 50, 0.1)
        assert drafter_id is not None
        chooser.fleet.count_sessions(drafter_id, 1, 0.1)
        given[drafter_id] += 1
    assert len(given) == NUM_DRAFTERS
    assert max(given.values()) <= 4


def test_the_one_drafter_of_many_that_suits_is_found() -> None:
    chooser = large_placement(max_context=50)
    chooser.fleet.observe(beat("site-7-drafter-7.1", "drafter", max_context=1000), 0.1)
    found = {chooser.drafter(generation(100), "v.1", 50, 0.2) for _ in range(100)}
    assert found == {None, "site-7-drafter-7.1"}, "a session without a drafter searches twice a second"


def test_a_key_that_names_few_drafters_of_many_finds_them() -> None:
    chooser = large_placement()
    for names, expected in (
        (("site-3-drafter-4",), {"site-3-drafter-4.1"}),
        (("site-3-drafter-4*",), {f"site-3-drafter-4{digit}.1" for digit in ("", *"0123456789")}),
        (("site-1*",), {f"{site(n)}.1" for n in range(NUM_DRAFTERS) if site(n).startswith("site-1")}),
        (("nobody", "site-19-drafter-99"), {"site-19-drafter-99.1"}),
        ((), set()),
    ):
        assert set(_listed(chooser, names)) == expected
        chosen = {chooser.drafter(generation(drafters=names), "v.1", 50, 0.1) for _ in range(50)} - {None}
        assert chosen <= expected
        assert bool(chosen) == bool(expected)


def test_a_name_is_no_prefix_of_another() -> None:
    chooser = large_placement()
    for name, expected in (("site-3-drafter-4", True), ("site-3-drafter", False), ("site-3-drafter-*", False)):
        assert chooser.fleet.serves("drafter", name, MODEL, 0.1) == expected


def test_an_instance_that_changes_its_models_is_listed_under_the_new_ones_alone() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1", models=["m", "n", "n"]), 0.0)
    fleet.observe(beat("a.1", models=["o"]), 1.0)
    assert [len(fleet.choices("verifier", model, 1.1)) for model in "mno"] == [0, 0, 1]
    fleet.observe(beat("a.2", models=["o"]), 2.0)
    assert [each.instance_id for each in fleet.choices("verifier", "o", 2.1)] == ["a.2"]
    assert fleet.expire(100.0) == ["a.1", "a.2"]
    assert fleet.choices("verifier", "o", 100.0) == []
    assert fleet.count("verifier") == 0


def test_an_id_belongs_to_the_service_that_it_was_first_heard_of() -> None:
    fleet = PeerFleet()
    fleet.observe(beat("a.1"), 0.0)
    assert not fleet.observe(beat("a.1", "drafter", load=Load(num_sessions=9)), 0.1)
    (verifier,) = fleet.choices("verifier", MODEL, 0.2)
    assert verifier.load.num_sessions == 0
    assert fleet.choices("drafter", MODEL, 0.2) == []


async def test_a_drafters_heartbeat_makes_the_gateway_look_at_no_verifier(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    async with a_world(folder, heartbeat_s=10.0) as world:
        fleet, bus = world.gateway.sessions.fleet, world.network.connect()
        monkeypatch.setattr(fleet, "max_context", lambda model, now: looks.append(model) or 0)
        for number in range(100):
            drafter_id = new_instance_id(f"drafter-{number}")
            await bus.publish(broadcast(Heartbeat, "drafter", drafter_id), beat(drafter_id, "drafter"))
        await until(lambda: world.count("peers", service="drafter") == 100)
        assert len(looks) <= 1, "the gateway's own heartbeat"
        verifier_id = new_instance_id("verifier")
        await bus.publish(broadcast(Heartbeat, "verifier", verifier_id), beat(verifier_id))
        await until(lambda: world.count("peers", service="verifier") == 1)
        assert looks, "readiness depends on verifiers"
