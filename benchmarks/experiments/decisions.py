"""Cost of window decisions, for each policy and for a controller: python -m benchmarks.experiments.decisions.

Invariant: policies decide on reports that change, as live ones do. The controller is the real service on a real
nats-server, and its processor time is read from /proc.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.request import urlopen

import typer
from rich.console import Console
from rich.table import Table

from awc.policy import DEFAULT_CHOICE, decide_all
from awc.registry import POLICIES
from benchmarks.harness.bus import bus_at
from benchmarks.harness.cell import running, usage_of
from benchmarks.harness.cell_plan import CONTROLLER, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from shared.bus.bus import Bus
from shared.protocol.messages import Heartbeat, Load, PairReport, Report
from shared.protocol.subjects import all_broadcasts, broadcast, new_instance_id, sender, to
from shared.timing import MAX_SILENCE_S

BATCH = 256  # maximum pairs of one report
NUM_ROUNDS, NUM_DECISIONS = 200, 20_000  # minimum, so that one pause of the machine matters little
NUM_VERIFIERS = 256
FLEETS = ((40, 250), (10_000, 1))  # drafters, and pairs that each reports
SLEEP_S = 0.005  # least sleep between reports: one after each would cost the sender more than the report
MAX_SLOWDOWN = 1.1  # actual / planned time to send the reports

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class PolicyCost:
    """Cost of one policy, microseconds per pair: means over rounds, since some policies do rare, expensive work."""

    policy: str
    alone: float  # one pair per call
    batched: float  # BATCH pairs per call


@dataclass(frozen=True, slots=True)
class ControllerCost:
    """Processor cores of a controller whose drafters each report `pairs_each` pairs once per second."""

    num_drafters: int
    pairs_each: int
    cores: float


@dataclass(frozen=True, slots=True)
class DecisionCosts:
    costs: list[PolicyCost]
    served: list[ControllerCost]
    origin: Origin


def reports(verifier_ids: list[str], chance: random.Random) -> list[PairReport]:
    """Random reports on each verifier."""
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
    """Microseconds per decision."""
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


async def cores_of_controller(num_drafters: int, pairs_each: int, seconds: float) -> float:
    """Cores used by a controller; the reports of its drafters are spread evenly over each second."""
    num_pairs = num_drafters * pairs_each
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        plan = CellPlan(Path(folder), names=(CONTROLLER,))
        async with running(plan, Path(folder), print) as cell, bus_at(cell.nats_url) as bus:
            cores = await _measure(bus, cell.pids()[CONTROLLER], num_drafters, pairs_each, seconds)
            known = await asyncio.to_thread(pairs_known, cell.children[CONTROLLER].urls[-1])
    if known != num_pairs:
        raise RuntimeError(f"invalid measurement: the controller knows {known} of {num_pairs} pairs")
    return cores


def pairs_known(url: str) -> int:
    """Number of pairs in a controller's metrics."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("dsd_controller_pairs "))))


async def _id_of_controller(bus: Bus) -> str:
    """The controller that is heard next."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    subscription = await bus.subscribe(
        all_broadcasts(Heartbeat, "controller"), lambda subject, _: heard.put_nowait(sender(subject))
    )
    async with asyncio.timeout(MAX_SILENCE_S):
        controller_id = await heard.get()
    await subscription.unsubscribe()
    return controller_id


async def _measure(bus: Bus, pid: int, num_drafters: int, pairs_each: int, seconds: float) -> float:
    controller_id = await _id_of_controller(bus)
    verifier_ids = [new_instance_id(f"cloud-{number}") for number in range(NUM_VERIFIERS)]
    drafter_ids = [new_instance_id(f"edge-{number}") for number in range(num_drafters)]
    turns = itertools.cycle(verifier_ids)
    served = [[next(turns) for _ in range(pairs_each)] for _ in drafter_ids]
    chance, num_rounds = random.Random(1), round(seconds)
    rounds = [[reports(each, chance) for each in served] for _ in range(4)]
    before = 0.0
    for number in range(-2, num_rounds):  # the first two introduce the pairs
        if number == 0:
            before, started = usage_of(pid).cpu_s, time.monotonic()
        if number % 4 == 2:  # also in the first round, -2
            for verifier_id in verifier_ids:
                heartbeat = Heartbeat("verifier", verifier_id, 10.0, ["any"], 1024, 100, "", Load(), False)
                await bus.publish(broadcast(Heartbeat, "verifier", verifier_id), heartbeat)
        due = time.monotonic()
        for place, drafter_id in enumerate(drafter_ids):
            report = Report(drafter_id, number + 2, rounds[number % 4][place], "", (controller_id,))
            await bus.publish(to("controller", controller_id, Report, drafter_id), report)
            wait_s = due + (place + 1) / len(drafter_ids) - time.monotonic()
            if wait_s > SLEEP_S or place == len(drafter_ids) - 1:
                await asyncio.sleep(max(0.0, wait_s))
    took_s, used_s = time.monotonic() - started, usage_of(pid).cpu_s - before
    if took_s > MAX_SLOWDOWN * num_rounds:
        raise RuntimeError(f"invalid measurement: sending the reports of {num_rounds} s took {took_s:.1f} s")
    return used_s / took_s


def table(result: DecisionCosts) -> Table:
    captions = [
        f"{each.num_drafters:,} drafters with {each.pairs_each} pairs each: {each.cores:.2f} cores of the controller"
        for each in result.served
    ]
    shown = Table("policy", "single pair, µs", f"pair in a batch of {BATCH}, µs", caption="\n".join(captions))
    for cost in result.costs:
        shown.add_row(cost.policy, f"{cost.alone:.1f}", f"{cost.batched:.1f}")
    return shown


@app.command()
def main(
    seconds: Annotated[float, typer.Option(min=4, help="Duration of the controller's load.")] = 30.0,
    folder: Annotated[Path, typer.Option(help="Folder for decisions.json.")] = REPORTS,
) -> None:
    """Measures every policy, and a controller with the default one."""
    costs = [PolicyCost(name, cost_of(name, 1), cost_of(name, BATCH)) for name in POLICIES]
    served = [ControllerCost(*fleet, asyncio.run(cores_of_controller(*fleet, seconds))) for fleet in FLEETS]
    result = DecisionCosts(costs, served, Origin.here("benchmarks.experiments.decisions"))
    write_result(folder / "decisions.json", result)
    Console().print(table(result))


if __name__ == "__main__":
    app()
