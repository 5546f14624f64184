"""Speed of DSD-Sim against the same fleet on SimPy: python -m benchmarks.experiments.sim_speed.

The fleet is the paper's: drafters in stop-and-wait, verifiers that take all waiting windows into the next pass. The
same fleet in the transport of the services shows what a window policy costs. The SimPy model is minimal: no KV cache,
prefill, gateway, timers or reports.

Invariant: both simulate the same drafters, links, passes and acceptance, so their windows per virtual second agree and
only the time that an engine needs for a window differs.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import simpy
import typer
from rich.console import Console
from rich.table import Table

from awc.policies.adaptive import AdaptivePolicy
from benchmarks.harness.files import REPORTS, ROOT, write_result
from benchmarks.harness.origin import Origin
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario

SCENARIOS = ROOT / "scenarios"
NUM_VERIFIERS, NUM_DRAFTERS, WINDOW, ACCEPTANCE = 20, 1000, 4, 0.8
STEP_MS, RTT_MS, PASS_MS, SESSION_MS = 12.0, 10.0, 40.0, 0.2
LENGTHS, ANSWER = "lengths/gsm8k.json", 138  # mean answer length of that file, tokens
MIN_WINDOWS_PER_S = 100_000
MAX_MIB = 1024

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Speed of one engine on one core."""

    engine: str
    num_windows: int
    core_s: float
    virtual_rate: float  # windows per virtual second; equal for both engines except for noise

    @property
    def windows_per_s(self) -> float:
        return self.num_windows / self.core_s


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """Speeds of both engines, of DSD-Sim by policy in the services' transport, and by number of requests, on which the
    cost of a window must not depend."""

    engines: list[EngineSpeed]
    by_policy: list[EngineSpeed]
    by_size: list[EngineSpeed]
    peak_mib: float
    origin: Origin


WAITING = {"window": WINDOW, "stop_and_wait": True, "batching": "fifo"}  # the paper's way of serving


def of_dsd_sim(num_requests: int, name: str = "DSD-Sim", policies: dict[str, Any] = WAITING) -> EngineSpeed:
    """A closed loop with one client for each drafter. Speed per second of a core, whatever else runs on the machine."""
    lengths = {"file": LENGTHS, "max_tokens": 512}
    edge = {
        "count": NUM_DRAFTERS,
        "times": {"step_ms": STEP_MS},
        "link": {"rtt_ms": RTT_MS},
        "guesses": {"kind": "independent", "rate": ACCEPTANCE},
    }
    cloud = {
        "count": NUM_VERIFIERS,
        "times": {"base_ms": PASS_MS, "session_ms": SESSION_MS},
        "token_budget": 2048,
        "kv_tokens": 10_000_000,
    }
    content = {
        "name": "speed",
        "workload": {"kind": "closed", "num_clients": NUM_DRAFTERS, "num_requests": num_requests, "lengths": lengths},
        "edge": (edge,),
        "cloud": (cloud,),
        "policies": policies,
    }
    scenario = Scenario.model_validate(content)
    fleet = make_fleet(scenario, SCENARIOS)
    started = time.process_time()
    fleet.run()
    elapsed = time.process_time() - started
    num_windows = int(fleet.world.clock[0]["num_windows"])
    return EngineSpeed(name, num_windows, elapsed, num_windows / fleet.now * 1000)


class SimpyVerifier:
    """Runs passes over all waiting windows."""

    def __init__(self, env: simpy.Environment) -> None:
        self.waiting: list[simpy.Event] = []
        self.num_windows = 0
        self._env = env
        self._comes = env.event()
        env.process(self._run())

    def verify(self) -> simpy.Event:
        done = self._env.event()
        self.waiting.append(done)
        if not self._comes.triggered:
            self._comes.succeed()
        return done

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.waiting:
                self._comes = self._env.event()
                yield self._comes
            batch, self.waiting = self.waiting, []
            yield self._env.timeout(PASS_MS + SESSION_MS * len(batch))
            self.num_windows += len(batch)
            for done in batch:
                done.succeed()


def simpy_drafter(
    env: simpy.Environment, verifier: SimpyVerifier, rng: random.Random
) -> Generator[simpy.Event, Any, None]:
    """Generates answers: draft, send, wait."""
    yield env.timeout(rng.random() * 100)
    while True:
        num_tokens = 0
        while num_tokens < ANSWER:
            for _ in range(WINDOW):
                yield env.timeout(STEP_MS)
            yield env.timeout(RTT_MS / 2)
            yield verifier.verify()
            yield env.timeout(RTT_MS / 2)
            accepted = next((i for i in range(WINDOW) if rng.random() >= ACCEPTANCE), WINDOW)
            num_tokens += accepted + 1


def of_simpy(virtual_s: float, seed: int) -> EngineSpeed:
    """The same fleet on SimPy."""
    rng = random.Random(seed)
    env = simpy.Environment()
    verifiers = [SimpyVerifier(env) for _ in range(NUM_VERIFIERS)]
    for index in range(NUM_DRAFTERS):
        env.process(simpy_drafter(env, verifiers[index % NUM_VERIFIERS], rng))
    started = time.process_time()
    env.run(until=virtual_s * 1000)
    elapsed = time.process_time() - started
    num_windows = sum(verifier.num_windows for verifier in verifiers)
    return EngineSpeed("SimPy", num_windows, elapsed, num_windows / virtual_s)


def table(result: SpeedComparison) -> Table:
    shown = Table("engine", "windows", "core s", "windows / core s", "windows / virtual s")
    for speed in (*result.engines, *result.by_policy, *result.by_size):
        rate = f"{speed.windows_per_s:,.0f}"
        shown.add_row(speed.engine, f"{speed.num_windows:,}", f"{speed.core_s:.2f}", rate, f"{speed.virtual_rate:,.0f}")
    return shown


@app.command()
def main(
    requests: Annotated[int, typer.Option(help="Requests of DSD-Sim's longest run.", min=1000)] = 32_000,
    folder: Annotated[Path, typer.Option(help="Folder for sim_speed.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measures both engines on one core. DSD-Sim's first run of each kind compiles and does not count."""
    for policies in (WAITING, {"windows": AdaptivePolicy.name}):
        of_dsd_sim(1000, policies=policies)
    engines = [of_dsd_sim(8000), of_simpy(20.0, seed)]
    by_policy = [of_dsd_sim(requests // 8, name, {"windows": name}) for name in ("static", AdaptivePolicy.name)]
    by_size = [of_dsd_sim(num) for num in (requests // 16, requests // 4, requests)]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = SpeedComparison(engines, by_policy, by_size, peak_mib, Origin.here("benchmarks.experiments.sim_speed"))
    write_result(folder / "sim_speed.json", result)
    console = Console()
    console.print(table(result))
    slowest = min(speed.windows_per_s for speed in (engines[0], *by_size))
    limits = f"limits: at least {MIN_WINDOWS_PER_S:,} windows/s on one core, less than {MAX_MIB} MiB"
    console.print(f"{limits}; measured: {slowest:,.0f} windows/s, {peak_mib:.0f} MiB, without making the fleet")
    if slowest < MIN_WINDOWS_PER_S or peak_mib >= MAX_MIB:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
