"""A real Prometheus scrapes a system under load: every panel shows data, and what breaks fires its alert in time."""

from __future__ import annotations

import asyncio
import math
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.harness.cell_plan import standin_name
from deploy.grafana.every import DASHBOARDS
from tests.e2e.processes import Metrics
from tests.metrics.live import LEASE_S, LOOK_S, LiveSystem, Prometheus, live_system, prometheus, standin_plan
from tests.metrics.reading import SPEED, alerts

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

RATE_INTERVAL = "10s"  # of panels: seven scrapes
DATA_S = 60.0  # for all panels to show data
WITHIN_S = {alert.name: alert.within_s / SPEED for alert in alerts()}
TOO_SLOW = "DsdGuessesLate"  # takes half an hour
HELD_S = max(within_s for name, within_s in WITHIN_S.items() if name != TOO_SLOW)


@dataclass(frozen=True, slots=True)
class Watched:
    system: LiveSystem
    prometheus: Prometheus

    async def reads(self, name: str, gauge: str) -> float:
        """What a process tells now."""
        async with self.prometheus.http.get(f"{self.system.url(name)}/metrics") as response:
            return Metrics(await response.text()).total(gauge)

    async def fires(self, alert: str, *names: str, since: float) -> None:
        """Returns when the alert fires for all these names; "" stands for an alert that names nobody. Fails after its
        stated time."""
        fired: set[str] = set()
        try:
            async with asyncio.timeout(WITHIN_S[alert] - (time.monotonic() - since)):
                while not fired >= set(names):
                    fired = (await self.prometheus.firing()).get(alert, set())
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pytest.fail(f"{alert} fires for {fired} only, {WITHIN_S[alert]:.1f} s after its event")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(
    promtool: str, default_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    async with (
        live_system(standin_plan(default_models, folder / "standin"), folder / "system") as system,
        prometheus(system, folder / "prometheus") as scraping,
    ):
        yield Watched(system, scraping)


async def test_every_panel_shows_data_of_a_system_under_load_and_no_alert_fires(watched: Watched) -> None:
    """The load is held for as long as the slowest alert but one may take to fire."""
    begun = time.monotonic()
    missing = {
        (board.name, panel.title, query.expr.replace("$__rate_interval", RATE_INTERVAL))
        for board in DASHBOARDS
        for panel in board.panels
        for query in panel.queries
    }
    async with watched.system.load(num_clients=3):
        try:
            async with asyncio.timeout(DATA_S):
                while missing:
                    missing = {each for each in missing if not has_data(await watched.prometheus.query(each[2]))}
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pytest.fail(f"no data: {sorted(missing)}")
        await asyncio.sleep(begun + HELD_S - time.monotonic())
        held_s = math.ceil(time.monotonic() - begun)
        assert await watched.prometheus.labelled(f'last_over_time(ALERTS{{alertstate="firing"}}[{held_s}s])') == []


def has_data(values: list[float]) -> bool:
    return any(math.isfinite(value) for value in values)


async def test_promtool_finds_no_fault_in_the_names_of_any_service(watched: Watched, promtool: str) -> None:
    async with aiohttp.ClientSession() as http:
        for name in watched.system.ports:
            async with http.get(f"{watched.system.url(name)}/metrics") as response:
                text = await response.read()
            check = partial(subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True)
            done = await asyncio.to_thread(check)
            assert done.returncode == 0, (name, done.stderr.decode())


async def test_a_saturated_verifier_and_a_full_queue_fire_their_alerts(watched: Watched) -> None:
    """12 clients, 8 slots and 2 places in the queue of the gateway, room for 6 sessions at the verifiers."""
    begun = time.monotonic()
    async with watched.system.load(num_clients=12):
        await watched.fires("DsdQueueFull", "gateway", since=begun)
        await watched.fires("DsdVerifierSaturated", "verifier-0", "verifier-1", since=begun)
        await watched.fires("DsdFleetSaturated", "", since=begun)


async def test_a_killed_drafter_fires_its_alert(watched: Watched) -> None:
    watched.system.kill("drafter-1")
    await watched.fires("DsdDrafterLost", standin_name("drafter-1"), since=time.monotonic())
    assert "DsdVerifierLost" not in await watched.prometheus.firing()


async def test_expired_leases_of_a_killed_gateway_fire_their_alert(watched: Watched) -> None:
    async with watched.system.load(num_clients=3):
        while not sum(await watched.prometheus.query("dsd_verifier_num_requests_running")):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        watched.system.kill("gateway")
        killed = time.monotonic()
        verifiers = [name for name in watched.system.ports if name.startswith("verifier")]
        held = {name for name in verifiers if await watched.reads(name, "dsd_verifier_sessions")}
        assert held
        await watched.fires("DsdLeaseExpired", *held, since=killed + LEASE_S)
        await watched.fires("DsdNoGateway", "", since=killed)
        assert (await watched.prometheus.firing())["DsdLeaseExpired"] == held
