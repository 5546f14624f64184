"""Session slots: a world adds slots when it needs them, and no result depends on their number."""

from __future__ import annotations

import numpy as np
import pytest

from dsd_sim.engine.world import with_more_slots
from tests.dsd_sim.builders import a_fleet, a_world, stop_and_wait


def test_a_client_may_ask_again_before_its_drafter_has_the_last_verdict() -> None:
    """The link takes a hundred times as long as an answer."""
    world = a_world(60, tokens=1, num_slots=2, rtt_ms=2000.0)
    world.requests["client"] = 0
    fleet = a_fleet(world)
    fleet.run()
    assert (fleet.world.requests["done_ms"] > 0).all()
    assert len(fleet.world.slots) > 2


@pytest.mark.parametrize("num_slots", [1, 3, 16])
def test_the_initial_number_of_slots_changes_no_result(num_slots: int) -> None:
    def served(room: int | None) -> bytes:
        world = a_world(24, num_devices=2, tokens=40, num_slots=room)
        world.requests["device"] = np.arange(24) % 2
        world.requests["arrival_ms"] = np.arange(24) * 30.0
        fleet = a_fleet(world)
        fleet.run()
        return fleet.world.requests.tobytes()

    assert served(num_slots) == served(None)


def test_adding_slots_keeps_all_state() -> None:
    world = a_world(4, num_devices=3, num_nodes=2, tokens=7)
    world.clock[0]["num_free_slots"] = 1
    world.right[2], world.device_slots[1, 2] = True, 9
    wider = with_more_slots(world)
    assert len(wider.slots) == len(wider.drafters) == len(wider.verifiers) == 8
    assert wider.right.shape == wider.confidence.shape == (8, 8)
    assert wider.device_slots.shape == (3, 8)
    assert wider.node_slots.shape == wider.batches.shape == (2, 8)
    assert wider.right[2].all()
    assert wider.device_slots[1, 2] == 9
    assert wider.clock[0]["num_free_slots"] == 5
    assert sorted(wider.free_slots[1:5].tolist()) == [4, 5, 6, 7]


@pytest.mark.parametrize(("rate", "counted", "other"), [(0.0, "recovered", "bonus"), (1.0, "bonus", "recovered")])
def test_target_tokens_are_recovered_after_a_wrong_guess_and_bonus_after_right_ones(
    rate: float, counted: str, other: str
) -> None:
    fleet = a_fleet(a_world(1, tokens=31, choice=stop_and_wait(4)), rate=rate)
    fleet.run()
    (request,) = fleet.world.requests
    assert request[other] == 0
    assert request["accepted"] + request[counted] == 30, "all but the first, which comes with the prompt"
    assert request[counted] == (30 if rate == 0 else 6)
