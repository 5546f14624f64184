"""The cost of window decisions, of each policy alone and of a controller with many pairs.

Run with `python -m benchmarks.experiments.decisions`.

Invariant: the policies decide on reports that change, as live ones do; the controller is the real service on a real
nats-server, and its processor time is the system's own count of it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.request import urlopen

import msgspec
import typer
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from awc.policy import DEFAULT_CHOICE, decide_all
from awc.registry import POLICIES
from benchmarks.harness.cell import usage_of
from benchmarks.harness.origin import Origin
from services.local.nats_server import free_port, program, write_open
from shared.bus import nats_bus
from shared.protocol.messages import Heartbeat, Load, PairReport, Report
from shared.protocol.subjects import broadcast, new_instance_id
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics

FOLDER = Path(__file__).parents[2] / "docs" / "reports" / "benchmarks"
BATCH = 256  # pairs of one report at most
NUM_ROUNDS, NUM_DECISIONS = 200, 20_000  # at least, so that one pause of the machine is not what is measured
NUM_VERIFIERS = 256
FLEETS = ((40, 250), (10_000, 1))  # drafters, and verifiers that each of them reports
MOST_LATE = 1.1  # of the time that reports should take

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one policy, in microseconds a pair: means over rounds, since some do what is due only now and then."""

    policy: str
    alone: float
    batched: float


@dataclass(frozen=True, slots=True)
class Served:
    """What a controller takes whose drafters report `pairs_each` pairs once a second."""

    num_drafters: int
    pairs_each: int
    cores: float


@dataclass(frozen=True, slots=True)
class Findings:
    costs: list[Cost]
    served: list[Served]
    origin: Origin


def reports(verifier_ids: list[str], chance: random.Random) -> list[PairReport]:
    """What a drafter might report of each verifier."""
    return [
        PairReport(
            verifier_id=verifier_id,
            num_sessions=1,
            window=8,
            drafted=20,
            matched=chance.randrange(8, 17),
            mismatched=chance.randrange(4),
            late=1,
            discarded=5,
            draft_ms=chance.uniform(8, 12),
            rtt_ms=chance.uniform(20, 40),
            queue=chance.random() / 2,
            tpot_ms=chance.uniform(15, 25),
            context=200,
            pass_ms=chance.uniform(30, 50),
            batch=4.0,
            pass_tokens=20.0,
        )
        for verifier_id in verifier_ids
    ]


def cost_of(name: str, num_pairs: int) -> float:
    """Microseconds a decision."""
    policy, chance = POLICIES[name](DEFAULT_CHOICE), random.Random(1)
    verifier_ids = [new_instance_id("cloud") for _ in range(num_pairs)]
    pairs = [policy.for_pair() for _ in verifier_ids]
    times, num_rounds = [], max(NUM_ROUNDS, NUM_DECISIONS // num_pairs)
    for _ in range(num_rounds):
        seen = reports(verifier_ids, chance)
        started = time.perf_counter()
        decide_all(policy, pairs, seen)
        times.append((time.perf_counter() - started) * 1e6 / num_pairs)
    return fmean(times[num_rounds // 10 :])


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[int]:
    """A process until the end of the block; its id."""
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def cores_of_controller(num_drafters: int, pairs_each: int, seconds: float) -> float:
    """Drafters report once a second, spread over it, some of the same verifiers each."""
    num_pairs = num_drafters * pairs_each
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        url = write_open(Path(folder), free_port()).url
        async with running(*program(Path(folder)).argv):
            await asyncio.sleep(1.0)
            http_port = free_port()
            flags = ("--nats-url", url, "--http-port", str(http_port))
            async with running(sys.executable, "-m", "services.window_controller", *flags) as pid:
                cores = await _measure(url, pid, num_drafters, pairs_each, seconds)
                known = await asyncio.to_thread(pairs_known, http_port)
    if known < num_pairs:
        raise RuntimeError(f"the controller knows {known} of {num_pairs} pairs, so its figure means nothing")
    return cores


def pairs_known(http_port: int) -> int:
    """Of a controller, by its metrics."""
    with urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("dsd_controller_pairs "))))


async def _measure(url: str, pid: int, num_drafters: int, pairs_each: int, seconds: float) -> float:
    bus = await nats_bus.connect(
        ServiceSettings(nats_url=url), new_instance_id("bench"), BusMetrics(CollectorRegistry())
    )
    await asyncio.sleep(2.0)
    verifier_ids = [new_instance_id("cloud") for _ in range(NUM_VERIFIERS)]
    drafter_ids = [new_instance_id("edge") for _ in range(num_drafters)]
    turns = itertools.cycle(verifier_ids)
    served = [[next(turns) for _ in range(pairs_each)] for _ in drafter_ids]
    chance, num_rounds = random.Random(1), round(seconds)
    rounds = [[reports(each, chance) for each in served] for _ in range(4)]
    before = 0.0
    for number in range(-2, num_rounds):  # the first two make the pairs known
        if number == 0:
            before, started = usage_of(pid).cpu_s, time.monotonic()
        if number % 4 == 2:  # as for -2, the first round
            for verifier_id in verifier_ids:
                beat = Heartbeat("verifier", verifier_id, 10.0, ["any"], 1024, 100, "", Load(), False)
                await bus.publish(broadcast(Heartbeat, verifier_id), beat)
        due = time.monotonic()
        for place, drafter_id in enumerate(drafter_ids):
            told = Report(drafter_id, number + 2, rounds[number % 4][place])
            await bus.publish(broadcast(Report, drafter_id), told)
            await asyncio.sleep(max(0.0, due + (place + 1) / len(drafter_ids) - time.monotonic()))
    took_s, used_s = time.monotonic() - started, usage_of(pid).cpu_s - before
    await bus.close()
    if took_s > MOST_LATE * num_rounds:
        raise RuntimeError(f"reports of {num_rounds} s were sent in {took_s:.1f} s, so the figure means nothing")
    return used_s / took_s


def table(findings: Findings) -> Table:
    """For a terminal."""
    told = [
        f"{each.num_drafters:,} drafters that report {each.pairs_each} pairs once a second take {each.cores:.2f} cores"
        for each in findings.served
    ]
    shown = Table("policy", "a pair alone, µs", f"a pair of {BATCH}, µs", caption="\n".join(told))
    for cost in findings.costs:
        shown.add_row(cost.policy, f"{cost.alone:.1f}", f"{cost.batched:.1f}")
    return shown


@app.command()
def main(
    seconds: Annotated[float, typer.Option(min=4, help="How long the controller is loaded.")] = 30.0,
    folder: Annotated[Path, typer.Option(help="Where decisions.json goes.")] = FOLDER,
) -> None:
    """Measures every policy, and a controller that serves the default one."""
    costs = [Cost(name, cost_of(name, 1), cost_of(name, BATCH)) for name in POLICIES]
    served = [Served(*fleet, asyncio.run(cores_of_controller(*fleet, seconds))) for fleet in FLEETS]
    findings = Findings(costs, served, Origin.here("benchmarks.experiments.decisions"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "decisions.json").write_bytes(msgspec.json.format(msgspec.json.encode(findings), indent=1))
    Console().print(table(findings))


if __name__ == "__main__":
    app()
