"""What one bad drafter costs the sessions of others: python -m benchmarks.experiments.bad_drafters.

The same honest sessions run beside one more session, whose drafter is absent, lies (random ids) or is silent (named,
but never sending). Only that differs, and conditions take turns in random order in every round, so that a drift of the
machine falls on all alike. Compared are the speeds of the honest sessions, prompt by prompt, with those of the same
round beside a session without a drafter. That condition runs twice a round: the ratio of its two runs shows what chance
alone does.

The honest sessions get a fixed window, small enough that their drafter does not take all that the verifier leaves of
the machine, and the liar computes nothing: a bad drafter would be on another machine, and must not take processor time
from those here.
"""

from __future__ import annotations

import asyncio
import json
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
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.liar import Liar
from benchmarks.harness import cell
from benchmarks.harness.cell_plan import DRAFTER, VERIFIER, CellPlan
from benchmarks.harness.paired import compare, median_of_ratios
from benchmarks.harness.prompts import OWN
from model_zoo.prompt_file import read_prompts
from services.gateway.text.chat_template import ChatMessage
from services.gateway.text.tokenizer import load_tokenizer
from shared.bus import nats_bus
from shared.bus.bus import Absent
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Message, Speculation
from shared.runtime.config import ServiceSettings
from shared.runtime.home import default_models_dir
from shared.runtime.metrics import BusMetrics
from tests.e2e.harness import Client

ALONE, CONTROL, LYING, SILENT = "no drafter", "no drafter, again", "lying drafter", "silent drafter"
CONDITIONS = (ALONE, CONTROL, LYING, SILENT)
START_S = 180.0
EXTRA_TOKENS = 4000  # more than it gets to: it runs as long as the others
LIMIT = 0.05

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """The speed of one honest session."""

    round_number: int
    condition: str
    prompt_number: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Honest sessions beside one condition; the ratio is to the same prompts beside a session without a drafter."""

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
class Fleet:
    """The instance ids of what runs, and a client."""

    client: Client
    verifier_id: str
    honest_id: str
    liar_id: str

    def drafter_of_extra(self, condition: str) -> str | None:
        if condition == SILENT:
            return subjects.new_instance_id("silent")
        return self.liar_id if condition == LYING else None


@asynccontextmanager
async def running(models: Path, draft: str, run_dir: Path) -> AsyncIterator[Fleet]:
    """A nats-server, a verifier and an honest drafter, each a process; a client and a liar here."""
    lease = {"DSD_LEASE_S": "3600"}  # the client sends no heartbeats
    plan = CellPlan(models, draft, names=(VERIFIER, DRAFTER), is_pinned=False, env=lease)
    async with cell.running(plan, run_dir, console.print) as services:
        bus = await nats_bus.connect(
            ServiceSettings(nats_url=services.nats_url),
            subjects.new_instance_id("bench"),
            BusMetrics(CollectorRegistry()),
        )
        client = Client(bus)
        await client.start()
        liar = Liar(bus, seed=1)
        lying = asyncio.create_task(liar.run(), name="lie")
        try:
            verifier_id, honest_id = await _ids_of(bus, (VERIFIER, DRAFTER))
            yield Fleet(client, verifier_id, honest_id, liar.instance_id)
        finally:
            lying.cancel()
            await asyncio.wait({lying})
            await bus.close()


async def _ids_of(bus: nats_bus.NatsBus, names: tuple[str, ...]) -> list[str]:
    """The instances with these names, when each has sent a heartbeat."""
    found: dict[str, str] = {}
    complete = asyncio.Event()

    def hear(subject: str, message: Message | Absent) -> None:
        if isinstance(message, Heartbeat):
            found[subjects.instance_name(message.instance_id)] = message.instance_id
        if found.keys() >= set(names):
            complete.set()

    subscription = await bus.subscribe(subjects.all_broadcasts(Heartbeat), hear)
    async with asyncio.timeout(START_S):
        await complete.wait()
    await subscription.unsubscribe()
    return [found[name] for name in names]


async def measure(
    fleet: Fleet, prompts: list[list[int]], condition: str, max_tokens: int, window: int, round_number: int
) -> list[Sample]:
    """One run: all honest sessions at once, beside one session of `condition` that outlasts them."""
    drafter_id = fleet.drafter_of_extra(condition)
    extra = asyncio.create_task(
        fleet.client.generate(prompts[0], verifier_id=fleet.verifier_id, drafter_id=drafter_id, max_tokens=EXTRA_TOKENS)
    )

    async def one(number: int) -> Sample:
        started = time.perf_counter()
        answer = await fleet.client.generate(
            prompts[number],
            verifier_id=fleet.verifier_id,
            drafter_id=fleet.honest_id,
            max_tokens=max_tokens,
            speculation=Speculation("static", window),
        )
        elapsed_s = time.perf_counter() - started
        return Sample(round_number, condition, number, len(answer.token_ids) / elapsed_s)

    try:
        return list(await asyncio.gather(*(one(number) for number in range(1, len(prompts)))))
    finally:
        extra.cancel()
        with suppress(asyncio.CancelledError):
            await extra


async def run_rounds(
    fleet: Fleet, prompts: list[list[int]], num_rounds: int, max_tokens: int, window: int, seed: int
) -> list[Sample]:
    """All conditions in every round, in random order; a first run of each, when all is cold, does not count."""
    order = random.Random(seed)
    samples: list[Sample] = []
    for round_number in range(num_rounds + 1):
        for condition in order.sample(CONDITIONS, len(CONDITIONS)):
            run = await measure(fleet, prompts, condition, max_tokens, window, round_number)
            speed = float(np.median([sample.tokens_per_s for sample in run]))
            console.print(f"round {round_number}: {condition}: {speed:.1f} tokens/s", highlight=False)
            samples += run if round_number else []
    return samples


def findings(samples: list[Sample], seed: int) -> list[Finding]:
    """Medians, and intervals by a bootstrap over rounds and, within a round, over sessions."""
    return [_finding(samples, condition, seed) for condition in CONDITIONS]


def _finding(samples: list[Sample], condition: str, seed: int) -> Finding:
    speeds = _speeds(samples, condition)
    ratio = compare(speeds, _speeds(samples, ALONE), median_of_ratios, seed=seed)
    return Finding(condition, float(np.median(speeds)), ratio.value, ratio.low, ratio.high)


def _speeds(samples: list[Sample], condition: str) -> np.ndarray:
    """Tokens per second, [rounds, sessions]."""
    mine = sorted(
        (sample.round_number, sample.prompt_number, sample.tokens_per_s)
        for sample in samples
        if sample.condition == condition
    )
    num_rounds = len({round_number for round_number, _, _ in mine})
    return np.array([speed for _, _, speed in mine]).reshape(num_rounds, -1)


def table(found: list[Finding], title: str) -> Table:
    """What the terminal shows."""
    shown = Table(title=title)
    for heading in ("beside a session with", "tokens/s (median)", "ratio (median)", "95 % interval", ""):
        shown.add_column(heading)
    for finding in found:
        is_base = finding.condition == ALONE
        interval = "" if is_base else f"{finding.low:.3f} … {finding.high:.3f}"
        verdict = "" if is_base else finding.verdict
        shown.add_row(finding.condition, f"{finding.tokens_per_s:.1f}", f"{finding.ratio:.3f}", interval, verdict)
    return shown


def _read_prompts(models: Path, number: int) -> list[list[int]]:
    tokenizer = load_tokenizer(models / "target")
    prompts = read_prompts(OWN)[:number]
    return [list(tokenizer.encode_chat([ChatMessage(role="user", content=prompt)])) for prompt in prompts]


async def _run(
    models: Path, draft: str, sessions: int, rounds: int, max_tokens: int, window: int, seed: int
) -> list[Sample]:
    prompts = _read_prompts(models, sessions + 1)
    with TemporaryDirectory(prefix="dsd-bench-") as run_dir:
        async with running(models, draft, Path(run_dir)) as fleet:
            return await run_rounds(fleet, prompts, rounds, max_tokens, window, seed)


@app.command()
def main(
    sessions: Annotated[int, typer.Option(min=1, max=32, help="Honest sessions at once.")] = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Measured rounds, each with all conditions.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each honest answer.")] = 96,
    window: Annotated[int, typer.Option(min=1, max=64, help="Window of the honest sessions.")] = 2,
    draft: Annotated[str, typer.Option(help="Draft model of the honest drafter: int8 or int4.")] = "int8",
    seed: Annotated[int, typer.Option(help="Of the order of conditions and of the bootstrap.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Write samples and findings to this JSON file.")] = None,
) -> None:
    """Measures what a lying and a silent drafter cost the sessions of others, on this machine with the default pair."""
    samples = asyncio.run(_run(default_models_dir(), draft, sessions, rounds, max_tokens, window, seed))
    found = findings(samples, seed)
    Console().print(table(found, f"{sessions} honest sessions of {max_tokens} tokens, {rounds} rounds"))
    if output is not None:
        content = {
            "sessions": sessions,
            "rounds": rounds,
            "max_tokens": max_tokens,
            "window": window,
            "draft": draft,
            "seed": seed,
            "findings": [asdict(finding) | {"verdict": finding.verdict} for finding in found],
            "samples": [asdict(sample) for sample in samples],
        }
        output.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    app()
