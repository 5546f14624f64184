"""Simulated gateways and controllers: admission, and expiry of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from awc.policy import WindowChoice
from dsd_sim.engine.world import STEER
from shared.protocol.messages import PairReport
from tests.dsd_sim.builders import a_fleet, a_world


@pytest.mark.parametrize("most", [1, 3])
def test_sessions_above_the_limit_wait_first_come_first_served(most: int) -> None:
    world = a_world(12, tokens=30)
    world.requests["arrival_ms"] = np.arange(12) * 1.0
    fleet = a_fleet(world, max_sessions=most)
    fleet.run()
    requests = fleet.world.requests
    firsts, ends = requests["first_ms"], requests["done_ms"]
    assert (firsts[most:] > np.sort(ends)[: 12 - most]).all()
    assert (np.diff(firsts) >= 0).all()
    assert requests["arrival_ms"].tolist() == list(range(12)), "TTFT tells of the wait"


def test_without_a_limit_no_session_waits() -> None:
    world = a_world(12, tokens=30)
    fleet = a_fleet(world)
    fleet.run()
    assert fleet.world.requests["first_ms"].max() < fleet.world.requests["done_ms"].min()


class ConstantPolicy:
    """Always decides the same window."""

    name = "constant"

    def __init__(self) -> None:
        self.num_pairs = 0

    def for_pair(self) -> ConstantPolicy:
        self.num_pairs += 1
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        return WindowChoice(3, 1, free_run=True)


@pytest.mark.parametrize(("break_s", "num_pairs", "num_decisions"), [(20, 1, 1), (50, 2, 1), (80, 2, 2)])
def test_a_pair_expires_after_30_s_and_its_window_after_60_s(break_s: int, num_pairs: int, num_decisions: int) -> None:
    world = a_world(2, tokens=100, num_logged=10_000)
    world.requests["arrival_ms"] = 0.0, break_s * 1000.0
    policy = ConstantPolicy()
    fleet = a_fleet(world, policy=policy)
    fleet.run()
    steers = fleet.world.log[(fleet.world.log["kind"] == STEER) & (fleet.world.log["start"] > 0)]
    assert steers["num"].tolist() == [3] * num_decisions
    assert policy.num_pairs == num_pairs
