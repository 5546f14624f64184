"""How fast DSD-Sim verifies windows, against the same fleet on SimPy: python -m benchmarks.experiments.sim_speed.

The fleet is the paper's: drafters in stop-and-wait, verifiers that take whatever waits into the next pass. On SimPy it
is the least that can be called that: no KV cache, no prefill, no gateway, no timers, no reports.

Invariant: both simulate the same drafters, links, passes and acceptance, so their windows per virtual second agree, and
what differs is the time that an engine takes for one.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import simpy
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.origin import Origin
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario

FOLDER = Path(__file__).parents[2] / "docs" / "reports" / "benchmarks"
SCENARIOS = Path(__file__).parents[2] / "scenarios"
NUM_VERIFIERS, NUM_DRAFTERS, WINDOW, ACCEPTANCE = 20, 1000, 4, 0.8
STEP_MS, RTT_MS, PASS_MS, SESSION_MS = 12.0, 10.0, 40.0, 0.2
LENGTHS, ANSWER = "lengths/gsm8k.json", 138  # tokens, the mean of the former
LEAST_WINDOWS_PER_S = 100_000
MOST_MIB = 1024

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one engine on one core. `virtual_rate`: windows per virtual second, the same for both but for chance."""

    engine: str
    num_windows: int
    wall_s: float
    virtual_rate: float

    @property
    def windows_per_s(self) -> float:
        return self.num_windows / self.wall_s


@dataclass(frozen=True, slots=True)
class Findings:
    """`by_size`: ours with requests in growing number; the cost of a window should not grow with them."""

    engines: list[Speed]
    by_size: list[Speed]
    peak_mib: float
    origin: Origin


def of_dsd_sim(num_requests: int) -> Speed:
    """Every drafter's user asks again as soon as the answer is there."""
    scenario = Scenario.model_validate(
        {
            "name": "speed",
            "workload": {
                "kind": "closed",
                "num_clients": NUM_DRAFTERS,
                "num_requests": num_requests,
                "lengths": {"file": LENGTHS, "max_tokens": 512},
            },
            "edge": (
                {
                    "count": NUM_DRAFTERS,
                    "times": {"step_ms": STEP_MS},
                    "link": {"rtt_ms": RTT_MS},
                    "guesses": {"kind": "independent", "rate": ACCEPTANCE},
                },
            ),
            "cloud": (
                {
                    "count": NUM_VERIFIERS,
                    "times": {"base_ms": PASS_MS, "session_ms": SESSION_MS},
                    "token_budget": 2048,
                    "kv_tokens": 10_000_000,
                },
            ),
            "policies": {"window": WINDOW, "stop_and_wait": True, "batching": "fifo"},
        }
    )
    fleet = make_fleet(scenario, SCENARIOS)
    started = time.perf_counter()
    fleet.run()
    elapsed = time.perf_counter() - started
    num_windows = int(fleet.world.clock[0]["num_windows"])
    return Speed("DSD-Sim", num_windows, elapsed, num_windows / fleet.now * 1000)


class Verifier:
    """Takes all that waits into one pass, over and over."""

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


def drafter(env: simpy.Environment, verifier: Verifier, rng: random.Random) -> Generator[simpy.Event, Any, None]:
    """Answer after answer: draft, send, wait."""
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


def of_simpy(virtual_s: float, seed: int) -> Speed:
    """The same on SimPy."""
    rng = random.Random(seed)
    env = simpy.Environment()
    verifiers = [Verifier(env) for _ in range(NUM_VERIFIERS)]
    for index in range(NUM_DRAFTERS):
        env.process(drafter(env, verifiers[index % NUM_VERIFIERS], rng))
    started = time.perf_counter()
    env.run(until=virtual_s * 1000)
    elapsed = time.perf_counter() - started
    num_windows = sum(verifier.num_windows for verifier in verifiers)
    return Speed("SimPy", num_windows, elapsed, num_windows / virtual_s)


def table(findings: Findings) -> Table:
    """For a terminal."""
    shown = Table("engine", "windows", "wall s", "windows / wall s", "windows / virtual s")
    for speed in (*findings.engines, *findings.by_size):
        rate = f"{speed.windows_per_s:,.0f}"
        shown.add_row(speed.engine, f"{speed.num_windows:,}", f"{speed.wall_s:.2f}", rate, f"{speed.virtual_rate:,.0f}")
    return shown


@app.command()
def main(
    requests: Annotated[int, typer.Option(help="Of our longest run.", min=1000)] = 32_000,
    folder: Annotated[Path, typer.Option(help="Where sim_speed.json goes.")] = FOLDER,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measures both engines on one core; our first run compiles and is not counted."""
    of_dsd_sim(1000)
    engines = [of_dsd_sim(8000), of_simpy(20.0, seed)]
    by_size = [of_dsd_sim(num) for num in (requests // 16, requests // 4, requests)]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    findings = Findings(engines, by_size, peak_mib, Origin.here("benchmarks.experiments.sim_speed"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sim_speed.json").write_bytes(msgspec.json.format(msgspec.json.encode(findings), indent=2) + b"\n")
    console = Console()
    console.print(table(findings))
    slowest = min(speed.windows_per_s for speed in (engines[0], *by_size))
    told = f"{LEAST_WINDOWS_PER_S:,} windows a second and core are asked, in less than {MOST_MIB} MiB"
    console.print(f"{told}: {slowest:,.0f} at least, {peak_mib:.0f} MiB at most; making a fleet is not counted")
    if slowest < LEAST_WINDOWS_PER_S or peak_mib >= MOST_MIB:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
