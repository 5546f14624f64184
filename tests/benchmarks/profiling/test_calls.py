"""Calls into metrics and journals are counted where they come from a service, and each kind has a time."""

from __future__ import annotations

import cProfile
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from benchmarks.profiling import units
from benchmarks.profiling.calls import INSPECTOR, METRICS, calls_into
from services.window_controller.metrics import ControllerMetrics
from shared.runtime.health import Health


def test_only_calls_of_services_count_and_what_they_call_does_not(tmp_path: Path) -> None:
    health = Health(CollectorRegistry())
    metrics = ControllerMetrics(CollectorRegistry())
    profile = cProfile.Profile()
    with profile:
        for _ in range(3):
            health.become("")  # sets a gauge, from shared/runtime/health.py
        metrics.reports.inc()  # from here
    profile.dump_stats(tmp_path / "service.prof")
    assert calls_into(METRICS, tmp_path / "service.prof") == {"set": 3}
    assert calls_into(INSPECTOR, tmp_path / "service.prof") == {}


def test_each_kind_of_call_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "REPEATS", 1)
    monkeypatch.setattr(units, "CALLS", 10)
    found = units.call_us()
    assert {"inc", "observe_pass", "count_guesses", "on_verdict", "closed"} <= found.keys()
    assert all(us > 0 for us in found.values())
