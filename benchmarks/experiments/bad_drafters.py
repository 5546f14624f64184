"""How much a bad drafter slows the sessions of others: python -m benchmarks.experiments.bad_drafters.

Honest sessions run beside one extra session whose drafter is absent, lies (random guesses) or is silent (assigned, but
never sends). Every round has all conditions in random order, so a drift of the machine affects all alike. Each honest
session is compared with the same prompt in the same round beside an extra session without a drafter. That condition
runs twice per round; the ratio of its two runs shows the noise.

In practice a bad drafter runs on another machine, so it must not take processor time here: the lying drafter computes
nothing, and the honest sessions have a fixed window so small that their drafter leaves the machine some idle time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.lying_drafter import LyingDrafter
from benchmarks.harness import cell
from benchmarks.harness.bus import bus_at
from benchmarks.harness.cell_plan import DRAFTER, VERIFIER, CellPlan
from benchmarks.harness.files import write_result
from benchmarks.harness.paired import compare, median_of_ratios
from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from shared.protocol import subjects
from shared.protocol.messages import Speculation
from shared.runtime.home import default_models_dir
from tests.e2e.harness import Client

ALONE, CONTROL, LYING, SILENT = "no drafter", "no drafter, again", "lying drafter", "silent drafter"
CONDITIONS = (ALONE, CONTROL, LYING, SILENT)
EXTRA_TOKENS = 4000  # so many that the extra session outlasts the others
LIMIT = 0.05  # largest slowdown

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class SessionSpeed:
    """The speed of one honest session."""

    round_number: int
    condition: str
    prompt_number: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """Honest sessions under one condition: median speed, and its ratio to ALONE."""

    condition: str
    tokens_per_s: float
    ratio: float
    low: float  # of the 95 % interval
    high: float

    @property
    def verdict(self) -> str:
        if self.low >= 1 - LIMIT:
            return f"within {LIMIT:.0%}"
        return f"slower than {LIMIT:.0%}" if self.high < 1 - LIMIT else "undecided"


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """A client, and the instance ids of the services."""

    client: Client
    verifier_id: str
    honest_id: str
    lying_id: str

    def drafter_of_extra(self, condition: str) -> str | None:
        if condition == SILENT:
            return subjects.new_instance_id("silent")
        return self.lying_id if condition == LYING else None


@asynccontextmanager
async def running(models: Path, draft: str, run_dir: Path) -> AsyncIterator[SystemUnderTest]:
    """Starts nats-server, a verifier and an honest drafter as processes; client and lying drafter run in this one."""
    lease = {"DSD_LEASE_S": "3600"}  # the client sends no heartbeats
    plan = CellPlan(models, drafts=(draft,), names=(VERIFIER, DRAFTER), is_pinned=False, env=lease)
    async with cell.running(plan, run_dir, console.print) as services, bus_at(services.nats_url) as bus:
        client = Client(bus)
        await client.start()
        lying_drafter = LyingDrafter(bus, seed=1)
        work = asyncio.create_task(lying_drafter.run(), name="lying drafter")
        try:
            verifier_id, honest_id = [await client.hear_of(name) for name in (VERIFIER, DRAFTER)]
            yield SystemUnderTest(client, verifier_id, honest_id, lying_drafter.instance_id)
        finally:
            work.cancel()
            await asyncio.wait({work})


async def measure(
    system: SystemUnderTest, prompts: list[list[int]], condition: str, max_tokens: int, window: int, round_number: int
) -> list[SessionSpeed]:
    """Speeds of all honest sessions at once, beside one extra session that outlasts them."""
    drafter_id = system.drafter_of_extra(condition)
    extra = asyncio.create_task(
        system.client.generate(
            prompts[0], verifier_id=system.verifier_id, drafter_id=drafter_id, max_tokens=EXTRA_TOKENS
        )
    )

    async def one(number: int) -> SessionSpeed:
        started = time.perf_counter()
        answer = await system.client.generate(
            prompts[number],
            verifier_id=system.verifier_id,
            drafter_id=system.honest_id,
            max_tokens=max_tokens,
            speculation=Speculation("static", window),
        )
        elapsed_s = time.perf_counter() - started
        return SessionSpeed(round_number, condition, number, len(answer.token_ids) / elapsed_s)

    try:
        return list(await asyncio.gather(*(one(number) for number in range(1, len(prompts)))))
    finally:
        extra.cancel()
        with suppress(asyncio.CancelledError):
            await extra


async def run_rounds(
    system: SystemUnderTest, prompts: list[list[int]], num_rounds: int, max_tokens: int, window: int, seed: int
) -> list[SessionSpeed]:
    """All conditions in every round, in random order. The first round is a warm-up and does not count."""
    order = random.Random(seed)
    samples: list[SessionSpeed] = []
    for round_number in range(num_rounds + 1):
        for condition in order.sample(CONDITIONS, len(CONDITIONS)):
            run = await measure(system, prompts, condition, max_tokens, window, round_number)
            speed = float(np.median([sample.tokens_per_s for sample in run]))
            console.print(f"round {round_number}: {condition}: {speed:.1f} tokens/s", highlight=False)
            samples += run if round_number else []
    return samples


def results_of(samples: list[SessionSpeed], seed: int) -> list[ConditionResult]:
    """Medians, and bootstrap intervals over rounds and, within a round, over sessions."""
    return [_result(samples, condition, seed) for condition in CONDITIONS]


def _result(samples: list[SessionSpeed], condition: str, seed: int) -> ConditionResult:
    speeds = _speeds(samples, condition)
    ratio = compare(speeds, _speeds(samples, ALONE), median_of_ratios, seed=seed)
    return ConditionResult(condition, float(np.median(speeds)), ratio.value, ratio.low, ratio.high)


def _speeds(samples: list[SessionSpeed], condition: str) -> np.ndarray:
    """Tokens per second, [rounds, sessions]."""
    mine = [sample for sample in samples if sample.condition == condition]  # by round, then by prompt
    return np.array([sample.tokens_per_s for sample in mine]).reshape(len({each.round_number for each in mine}), -1)


def table(found: list[ConditionResult], title: str) -> Table:
    shown = Table("condition", "tokens/s (median)", "ratio (median)", "95 % interval", "", title=title)
    for each in found:
        is_base = each.condition == ALONE
        interval = "" if is_base else f"{each.low:.3f} … {each.high:.3f}"
        verdict = "" if is_base else each.verdict
        shown.add_row(each.condition, f"{each.tokens_per_s:.1f}", f"{each.ratio:.3f}", interval, verdict)
    return shown


async def _run(
    models: Path, draft: str, sessions: int, rounds: int, max_tokens: int, window: int, seed: int
) -> list[SessionSpeed]:
    prompts = encode_prompts(load_tokenizer(models / "target"), read_prompts(DEFAULT_PROMPTS)[: sessions + 1])
    with TemporaryDirectory(prefix="dsd-bench-") as run_dir:
        async with running(models, draft, Path(run_dir)) as system:
            return await run_rounds(system, prompts, rounds, max_tokens, window, seed)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(min=1, max=32, help="Honest sessions at once.")] = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds, each with all conditions.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each honest answer.")] = 96,
    window: Annotated[int, typer.Option(min=1, max=64, help="Window of the honest sessions.")] = 2,
    draft: Annotated[str, typer.Option(help="Draft model of the honest drafter: int8 or int4.")] = "int8",
    seed: Annotated[int, typer.Option(help="Seed of the order of conditions and of the bootstrap.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Write results and samples to this JSON file.")] = None,
) -> None:
    """Measures how much a lying and a silent drafter slow the sessions of others, with the default pair."""
    samples = asyncio.run(_run(default_models_dir(), draft, sessions, rounds, max_tokens, window, seed))
    found = results_of(samples, seed)
    Console().print(table(found, f"{sessions} honest sessions of {max_tokens} tokens, {rounds} rounds"))
    if output is not None:
        content = {
            "sessions": sessions,
            "rounds": rounds,
            "max_tokens": max_tokens,
            "window": window,
            "draft": draft,
            "seed": seed,
            "findings": [asdict(each) | {"verdict": each.verdict} for each in found],
            "samples": samples,
        }
        write_result(output, content)


if __name__ == "__main__":
    app()
