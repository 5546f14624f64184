"""Calls into metrics and journals are counted where they come from a service, each kind has a time, and both costs are
judged."""

from __future__ import annotations

import cProfile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from benchmarks.profiling import __main__ as command
from benchmarks.profiling import units
from benchmarks.profiling.calls import INSPECTOR, METRICS, calls_into
from services.window_controller.metrics import ControllerMetrics
from shared.runtime.health import Health
from tests.gateway.conftest import a_world
from tests.gateway.http.test_http import CHAT, chat
from tests.gateway.tiny import make_folder


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


@pytest.fixture
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LOOPS", 1)
    monkeypatch.setattr(units, "CALLS", 10)


def test_each_kind_of_call_has_a_time(short_loops: None) -> None:
    found = units.call_us()
    assert {"inc", "observe_pass", "count_guesses", "on_verdict", "closed"} <= found.keys()
    assert all(us > 0 for us in found.values())


async def test_every_call_of_a_gateway_from_its_start_on_has_a_time(short_loops: None, tmp_path: Path) -> None:
    with cProfile.Profile() as profile:
        async with a_world(make_folder(tmp_path / "target")) as world:
            await world.verifier()
            await world.drafter()
            async with world.client.post(CHAT, json=chat()) as response:
                assert response.status == 200
            await world.no_session_is_left()
    profile.dump_stats(tmp_path / "gateway.prof")
    found = calls_into(METRICS, tmp_path / "gateway.prof") + calls_into(INSPECTOR, tmp_path / "gateway.prof")
    assert {"set", "on_verdict"} <= found.keys()
    assert found.keys() <= units.call_us().keys()


def test_a_call_takes_the_median_of_its_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = iter([2e-3, 9e-3, 1e-3])
    monkeypatch.setattr(units, "LOOPS", 3)
    monkeypatch.setattr(units, "CALLS", 1000)
    monkeypatch.setattr(units.timeit, "repeat", lambda *_, number, repeat: [next(loops) for _ in range(repeat)])
    assert units.us_of(lambda: None) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("metrics_us", "journal_us", "status"), [(2.0, 2.0, 0), (2.01, 0.5, 1), (0.5, 2.01, 1)], ids=str
)
def test_the_command_fails_where_metrics_or_a_journal_cost_too_much(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metrics_us: float, journal_us: float, status: int
) -> None:
    async def measure(*_: Any) -> dict[str, command.MetricsCost]:
        return {
            "gateway": command.MetricsCost(100, 0.5, journal_us, {"inc": 1.0}),
            "verifier-0": command.MetricsCost(100, metrics_us, 0.0, {"inc": 1.0}),
        }

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "call_us", lambda: {"inc": 0.5})
    found = CliRunner().invoke(command.app, ["--folder", str(tmp_path)])
    assert found.exit_code == status, found.output
    assert ("2.01 FAILED" in found.output) == bool(status)
    assert (tmp_path / "metrics_cost.json").exists()
