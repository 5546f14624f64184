"""Heartbeats of a fleet reach a real gateway, and its placements are timed by every router."""

from __future__ import annotations

from pathlib import Path

from benchmarks.experiments.large_fleet import SESSIONS, make_fleet, measure_heartbeats, measure_placements
from shared.policies.routing import ROUTERS


def test_placements_are_timed_by_every_router() -> None:
    times = measure_placements(make_fleet(20, 2, seed=1), seed=1)
    assert times.keys() == SESSIONS.keys()
    assert all(by_router.keys() == ROUTERS.keys() for by_router in times.values())


async def test_the_heartbeats_of_a_fleet_reach_the_gateway_that_is_measured(default_models: Path) -> None:
    beats = make_fleet(400, 5, seed=1)
    per_s, _, _ = await measure_heartbeats(default_models, beats, 2.0)  # raises if the gateway does not know them all
    assert 0 < per_s <= len(beats) * 1.2
