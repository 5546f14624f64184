"""Heartbeats of a fleet reach a real gateway, and its placements are timed by every router."""

from __future__ import annotations

from pathlib import Path

from benchmarks.experiments.large_fleet import SESSIONS, make_fleet, measure_heartbeats, measure_placements
from shared.policies.routing import ROUTERS


def test_placements_are_timed_by_every_router() -> None:
    times = measure_placements(make_fleet(20, 2, seed=1), seed=1)
    assert times.keys() == SESSIONS.keys()
    assert all(by_router.keys() == ROUTERS.keys() for by_router in times.values())
    assert all(ms > 0.0 for by_router in times.values() for ms in by_router.values())


async def test_heartbeats_cost_a_gateway_time(default_models: Path) -> None:
    beats = make_fleet(400, 5, seed=1)
    per_s, share, idle = await measure_heartbeats(default_models, beats, 2.0)
    assert 0 < per_s <= len(beats) * 1.2
    assert share + idle > 0.0
    assert idle >= 0.0
