"""Routing policies in simulated fleets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_sim.engine.world import World
from shared.policies.kv_cache import KV_STEP
from tests.dsd_sim.builders import a_fleet, a_world

NUM = 120


def served(router: str, hops_ms: tuple[float, ...] = (0.0, 0.0, 0.0), gap_ms: float = 400.0) -> NDArray[np.int64]:
    """The verifier of each of NUM requests that arrive every `gap_ms` and take two seconds each."""
    world: World = a_world(NUM, num_nodes=len(hops_ms), num_devices=1)
    world.requests["arrival_ms"] = np.arange(NUM) * gap_ms
    world.nodes["delay_ms"] = hops_ms
    a_fleet(world, router=router).run()
    found: NDArray[np.int64] = world.requests["node"].astype(np.int64)
    return found


def test_round_robin_takes_turns() -> None:
    assert (np.diff(served("round-robin")) % 3 == 1).all()


def test_jsq_spreads_sessions_evenly() -> None:
    assert np.bincount(served("jsq"), minlength=3) == pytest.approx([NUM / 3] * 3, abs=6)


@pytest.mark.parametrize("router", ["random", "jsq2"])
def test_random_routers_use_all_verifiers(router: str) -> None:
    found = served(router)
    assert np.bincount(found, minlength=3) == pytest.approx([NUM / 3] * 3, abs=20)
    assert len(set(map(tuple, found[: 3 * (NUM // 3)].reshape(-1, 3)))) > 3


def test_two_choices_spread_sessions_better_than_random() -> None:
    """All requests arrive at once. Assignments since the heartbeat count, so two choices differ less."""
    spread = {router: np.ptp(np.bincount(served(router, gap_ms=0.0), minlength=3)) for router in ("random", "jsq2")}
    assert spread["jsq2"] < spread["random"]


def test_gateways_that_do_not_know_of_each_other_spread_sessions_worse() -> None:
    """Each counts only its own assignments since the last heartbeats."""
    spread = {}
    for num_gateways in (1, 12):
        world = a_world(NUM, num_nodes=3, num_devices=1)
        a_fleet(world, num_gateways=num_gateways).run()
        spread[num_gateways] = np.ptp(np.bincount(world.requests["node"], minlength=3))
    assert spread[1] == 0
    assert spread[12] > 3


def test_rtt_jsq_sends_less_to_a_far_verifier() -> None:
    near_and_far = (0.0, 0.0, 200.0)
    by_queue, by_trip = (np.bincount(served(router, near_and_far), minlength=3)[2] for router in ("jsq", "rtt-jsq"))
    assert by_trip < by_queue / 2


def crowded(num: int, kv_tokens: tuple[int, ...], arrivals_ms: list[float]) -> World:
    """Requests of two steps of KV cache each that take two seconds."""
    world = a_world(num, num_nodes=len(kv_tokens), num_devices=1)
    world.requests["arrival_ms"] = arrivals_ms
    world.nodes["kv_tokens"] = world.nodes["free_kv"] = kv_tokens
    return world


def test_a_verifier_without_room_gets_no_session_while_another_has_room() -> None:
    world = crowded(5, (2 * KV_STEP, 1 << 20), [0.0, 10.0, 20.0, 1100.0, 1110.0])
    a_fleet(world, router="jsq").run()
    assert world.requests["node"].tolist() == [0, 1, 1, 1, 1]


def test_a_session_that_waits_for_kv_cache_moves_when_another_verifier_has_room() -> None:
    """Of six sessions on two verifiers with room for two, the third of each waits. The first verifier is ten times as
    slow, so its third session moves when the second one is free."""
    world = crowded(6, (4 * KV_STEP, 4 * KV_STEP), [0.0] * 6)
    world.nodes["slowdown"] = 10.0, 1.0
    fleet = a_fleet(world, router="round-robin")
    fleet.run()
    requests = fleet.world.requests
    assert np.bincount(requests["node"]).tolist() == [2, 4]
    assert (
        requests["drafted"] == requests["accepted"] + requests["rejected"] + requests["late"] + requests["discarded"]
    ).all()
