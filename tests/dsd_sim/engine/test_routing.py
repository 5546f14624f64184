"""Routing in simulated fleets: each policy sends requests where it should."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_sim.engine.world import World
from tests.dsd_sim.builders import a_fleet, a_world

NUM = 120


def served(router: str, hops_ms: tuple[float, ...] = (0.0, 0.0, 0.0), gap_ms: float = 400.0) -> NDArray[np.int64]:
    """Which verifier each of NUM requests came to; they follow each other at `gap_ms`, and one takes two seconds."""
    world: World = a_world(NUM, num_nodes=len(hops_ms), num_devices=1)
    world.requests["arrival_ms"] = np.arange(NUM) * gap_ms
    world.nodes["delay_ms"] = hops_ms
    a_fleet(world, router=router).run()
    found: NDArray[np.int64] = world.requests["node"].astype(np.int64)
    return found


def test_round_robin_takes_turns() -> None:
    assert (np.diff(served("round-robin")) % 3 == 1).all()


def test_the_shortest_queue_keeps_verifiers_alike() -> None:
    assert np.bincount(served("jsq"), minlength=3) == pytest.approx([NUM / 3] * 3, abs=6)


@pytest.mark.parametrize("router", ["random", "jsq2"])
def test_chance_has_a_part_and_leaves_no_verifier_out(router: str) -> None:
    found = served(router)
    assert np.bincount(found, minlength=3) == pytest.approx([NUM / 3] * 3, abs=20)
    assert len(set(map(tuple, found[: 3 * (NUM // 3)].reshape(-1, 3)))) > 3


def test_two_choices_avoid_the_busiest_verifier_and_chance_does_not() -> None:
    """All at once: what is chosen counts at once, so two choices stay closer together."""
    spread = {router: np.ptp(np.bincount(served(router, gap_ms=0.0), minlength=3)) for router in ("random", "jsq2")}
    assert spread["jsq2"] < spread["random"]


def test_a_far_verifier_gets_less_by_its_round_trip() -> None:
    near_and_far = (0.0, 0.0, 200.0)
    by_queue, by_trip = (np.bincount(served(router, near_and_far), minlength=3)[2] for router in ("jsq", "rtt-jsq"))
    assert by_trip < by_queue / 2
