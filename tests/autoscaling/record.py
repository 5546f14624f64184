"""Records metrics for the tests of autoscaling: python -m tests.autoscaling.record (five minutes, for both recordings).

saturated: the default pair, one verifier for 8 sessions; 24 clients. Nothing is scaled.

scaled: stand-in models, verifiers for 8 sessions each; 6, then 24, then 6 clients. The rule of the manifests starts and
stops verifiers, as a StatefulSet does.

Invariant: scrapes, decisions, drains and the periods of rules are SPEED times faster than in the manifests, and
recorded times SPEED times longer than measured.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.cell_plan import CellPlan
from client.wire import DsdOptions
from shared.data.profiles import PassTimes, Profile, StepTimes
from shared.runtime.home import DEFAULT_MODEL, default_models_dir
from shared.runtime.machine import describe_machine
from tests.autoscaling.autoscaler import COMPONENTS, SYNC_S, Autoscaler, read_rule
from tests.autoscaling.recording import Decision, Recording, Scraped, write
from tests.metrics.live import (
    LEASE_S,
    LOOK_S,
    READY_S,
    SCRAPE_S,
    LiveSystem,
    Prometheus,
    live_system,
    prometheus,
    standin_plan,
)
from tests.metrics.reading import SPEED

RECORDED = (
    "dsd_gateway_(sessions|num_requests_waiting|connections|failovers_total|e2e_request_latency_seconds_count)"
    "|dsd_verifier_(num_requests_running|num_requests_waiting|capacity_sessions|utilization_ratio|queue_tokens)"
    "|dsd_drafter_guesses_total"
)
FAILED = 'dsd_gateway_failed_sessions_total{code=~"overloaded|draining|internal"}'
VERIFIER = {"DSD_MAX_SESSIONS": "8", "DSD_LEASE_S": str(LEASE_S), "DSD_DRAIN_S": str(60 / SPEED)}
SLOW = Profile(name="slower", origin="made up", verifier=PassTimes(base_ms=100.0), drafter=StepTimes(step_ms=10.0))
BEFORE_S, LOADED_S, AFTER_S = 15.0, 20.0, 110.0  # LOADED_S: after the new verifiers have taken what waited
FEW, MANY = 6, 24
SATURATED_S = 40.0


@dataclass(slots=True)
class Watch:
    """A system, the Prometheus beside it, and what is noted meanwhile. name: of the recording."""

    name: str
    system: LiveSystem
    source: Prometheus
    begun: float = field(default_factory=time.time)
    load: list[tuple[float, int]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        """As recorded."""
        return (time.time() - self.begun) * SPEED

    @asynccontextmanager
    async def asked_by(self, num_clients: int) -> AsyncIterator[None]:
        """Half of the clients let the target generate alone, so that their answers outlast a drain."""
        self.load.append((round(self.now_s, 2), num_clients))
        half = num_clients // 2
        async with self.system.load(num_clients - half), self.system.load(half, DsdOptions("off")):
            yield

    async def all_run(self, num_sessions: int) -> None:
        """Returns when verifiers compute so many sessions."""
        async with asyncio.timeout(READY_S):
            while sum(await self.source.query("sum(dsd_verifier_num_requests_running)")) < num_sessions:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)

    async def written(self) -> None:
        seconds = time.time() - self.begun
        found = await self.source.series(f'{{__name__=~"{RECORDED}"}}[{seconds:.0f}s]')
        found += await self.source.series(f"{FAILED}[{seconds:.0f}s]")
        recording = Recording(
            source=f"python -m tests.autoscaling.record, {describe_machine()}, {datetime.now(UTC):%Y-%m-%d}; "
            f"times are {SPEED} times as long as measured",
            scrape_s=SCRAPE_S * SPEED,
            load=self.load,
            instances=scraped(found, self.begun),
            decisions=self.decisions,
            answers=dict(self.system.answers),
        )
        write(self.name, recording)


def scraped(found: list[dict], begun: float) -> dict[str, Scraped]:
    """By instance, with recorded times."""
    at: dict[str, dict[str, dict[float, float]]] = {}
    for series in found:
        labels = {key: value for key, value in series["metric"].items() if key not in ("job", "namespace")}
        name, instance = labels.pop("__name__"), labels.pop("instance")
        told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        samples = {round((when - begun) * SPEED, 2): float(value) for when, value in series["values"]}
        at.setdefault(instance, {})[f"{name}{{{told}}}" if told else name] = samples
    made = {}
    for instance, series_of in sorted(at.items()):
        times = sorted({when for samples in series_of.values() for when in samples if when >= 0})
        made[instance] = Scraped(times, {k: [s.get(when) for when in times] for k, s in sorted(series_of.items())})
    return made


async def scale_verifiers(watch: Watch) -> None:
    """Decides as often as Kubernetes does, starts the next verifier or stops the last. Runs until cancelled."""
    rule = read_rule(COMPONENTS / "keda" / "verifier.yaml")
    scaler = Autoscaler(rule, rule.min_replicas)
    while True:
        values = await watch.source.query(rule.query)
        now_s, value = watch.now_s, values[0] if values else None
        before = scaler.replicas
        watch.decisions.append(Decision(round(now_s, 2), value, scaler.decide(now_s, value)))
        for number in range(before, scaler.replicas):
            start(watch.system, f"verifier-{number}")
        for number in range(scaler.replicas, before):
            watch.system.processes[f"verifier-{number}"].send_signal(signal.SIGTERM)
        await asyncio.sleep(SYNC_S / SPEED)


def start(system: LiveSystem, name: str) -> None:
    """A pod of this name must be gone first, as in a StatefulSet."""
    former = system.processes.get(name)
    if former is not None:
        former.wait()
    system.start(system.spare[name], system.ports[name])


@asynccontextmanager
async def watched(name: str, plan: CellPlan, spare: tuple[str, ...], folder: Path) -> AsyncIterator[Watch]:
    settings = {"verifier-0": VERIFIER}
    async with (
        live_system(plan, folder / "system", settings, spare) as system,
        prometheus(system, folder / "prometheus") as source,
    ):
        watch = Watch(name, system, source)
        yield watch
        await watch.written()


async def record_saturated(folder: Path) -> None:
    plan = CellPlan(default_models_dir(), is_pinned=False)
    async with watched("saturated", plan, (), folder) as watch:
        watch.system.model = DEFAULT_MODEL
        await asyncio.sleep(BEFORE_S)
        async with watch.asked_by(MANY):
            await asyncio.sleep(SATURATED_S)


async def record_scaled(folder: Path) -> None:
    plan = standin_plan(default_models_dir(), folder / "standin", num_verifiers=4)
    assert plan.standin is not None
    plan.standin.profile.write_text(SLOW.model_dump_json(), encoding="utf-8")
    async with watched("scaled", plan, ("verifier-2", "verifier-3"), folder) as watch:
        scaling = asyncio.create_task(scale_verifiers(watch))
        async with watch.asked_by(FEW):
            await asyncio.sleep(BEFORE_S)
        async with watch.asked_by(MANY):
            await watch.all_run(MANY - 2)  # one or two are between two answers
            await asyncio.sleep(LOADED_S)
        async with watch.asked_by(FEW):
            await asyncio.sleep(AFTER_S)
        scaling.cancel()
        await asyncio.gather(scaling, return_exceptions=True)


async def main() -> None:
    for record in (record_saturated, record_scaled):
        with TemporaryDirectory(prefix="dsd-autoscaling-") as name:
            await record(Path(name))


if __name__ == "__main__":
    asyncio.run(main())
