"""A load generator for a gateway's HTTP API: python -m benchmarks.load --help.

Open loop: --rate (Poisson) or --trace; closed loop: --clients. A gateway's API key is read from DSD_API_KEY.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.asking import Asking, connected, measure
from benchmarks.harness.latency import OK, PERCENTILES, Objective, Sample, Spread, Summary, summarise
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import OWN, Arrival, read_arrivals
from benchmarks.load.arrivals import closed_loop, open_loop, poisson_times
from client.gateway import KEY_VARIABLE, ClientError
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for, and when: at `arrivals`, or by `num_clients` where there are none."""

    prompts: Sequence[str]
    arrivals: Sequence[Arrival | float]
    num_clients: int
    num_requests: int
    think_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked, and what came of it."""

    model: str
    samples: list[Sample]


async def run(url: str, model: str | None, options: AnswerOptions, ignore_eos: bool, load: Load) -> Run:
    """Makes all requests; raises ClientError where no gateway is reached at the beginning."""
    async with connected(url, os.environ.get(KEY_VARIABLE, "")) as gateway:
        asking = Asking(model or await gateway.first_model(), options, ignore_eos)
        ask = partial(measure, gateway, asking)
        if load.arrivals:
            samples = await open_loop(ask, load.prompts, load.arrivals)
        else:
            samples = await closed_loop(ask, load.prompts, load.num_clients, load.num_requests, load.think_s)
    return Run(asking.model, samples)


def table(summary: Summary) -> Table:
    """Percentiles, one row a figure."""
    shown = Table()
    for heading in ("", "number", "mean", *(f"p{each}" for each in PERCENTILES)):
        shown.add_column(heading, justify="left" if not heading else "right")
    rows = (("TTFT ms", summary.ttft_ms), ("TPOT ms", summary.tpot_ms), ("end to end ms", summary.total_ms))
    for name, spread in (*rows, ("sent late ms", summary.sent_late_ms)):
        if spread is not None:
            shown.add_row(name, str(spread.count), *(f"{value:.1f}" for value in _values(spread)))
    return shown


def _values(spread: Spread) -> tuple[float, ...]:
    return spread.mean, spread.p50, spread.p90, spread.p95, spread.p99


def lines(summary: Summary, objective: Objective) -> list[str]:
    """What doesn't fit the table."""
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(summary.statuses.items()))
    told = [
        f"requests: {statuses}; {summary.duration_s:.1f} s in all",
        f"{summary.tokens_per_s:.1f} tokens/s ({summary.num_tokens} tokens)",
    ]
    if objective != Objective():
        kept = f"TTFT ≤ {objective.ttft_ms:g} ms, TPOT ≤ {objective.tpot_ms:g} ms"
        share = f"{summary.goodput_share:.0%} of requests"
        told.append(f"goodput {summary.goodput_tokens_per_s:.1f} tokens/s, {share} ({kept})")
    if summary.acceptance is not None:
        fates = f"{summary.accepted} accepted, {summary.late} late, {summary.rejected} rejected"
        told.append(f"guesses: {fates}, {summary.discarded} discarded; acceptance {summary.acceptance:.3f}")
    return told


def write_json(path: Path, origin: Origin, summary: Summary, done: Run) -> None:
    content = {
        "origin": asdict(origin),
        "model": done.model,
        "summary": asdict(summary),
        "samples": [asdict(sample) | {"ttft_ms": sample.ttft_ms, "tpot_ms": sample.tpot_ms} for sample in done.samples],
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


@app.command()
def main(
    url: Annotated[str, typer.Option(envvar="DSD_URL", help="Address of the gateway.")] = "http://127.0.0.1:8080",
    model: Annotated[str | None, typer.Option(help="Model to ask; else the first one served.")] = None,
    prompts: Annotated[Path, typer.Option(help="JSONL file with prompts.", show_default="our own")] = OWN,
    field: Annotated[str | None, typer.Option(help="Field of the prompt; else it is found.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Open loop: requests per second (Poisson).")] = None,
    trace: Annotated[Path | None, typer.Option(help="Open loop: JSONL with arrival_ms and target_tokens.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Closed loop: clients.", show_default="1")] = None,
    think_s: Annotated[
        float | None, typer.Option(min=0, help="Closed loop: pause of a client between requests.", show_default="0")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests in all.", show_default="a prompt each")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 96,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers go on to max_tokens.")] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and of sampling.")] = 1,
    speculation: Annotated[str | None, typer.Option(help="off, static or adaptive.")] = None,
    window: Annotated[int | None, typer.Option(min=1, max=64, help="Window of static speculation.")] = None,
    ttft_ms: Annotated[float, typer.Option(min=0, help="Objective for goodput.")] = float("inf"),
    tpot_ms: Annotated[float, typer.Option(min=0, help="Objective for goodput.")] = float("inf"),
    output: Annotated[Path | None, typer.Option(help="Write summary and samples to this JSON file.")] = None,
) -> None:
    """Puts a gateway under load and tells how it answers."""
    if rate is not None and trace is not None:
        raise typer.BadParameter("--rate and --trace exclude each other")
    if (rate is not None or trace is not None) and (clients is not None or think_s is not None):
        raise typer.BadParameter("--clients and --think-s are of a closed loop: --rate and --trace exclude them")
    try:
        texts = read_prompts(prompts, field)
        arrivals: Sequence[Arrival | float] = []
        if trace is not None:
            arrivals = read_arrivals(trace)[:requests]
        elif rate is not None:
            arrivals = poisson_times(rate, requests or len(texts), seed)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    mode = speculation or ("static" if window is not None else None)
    options = AnswerOptions(max_tokens, temperature, seed=seed, speculation=DsdOptions(mode, window))
    load = Load(texts, arrivals, clients or 1, requests or len(texts), think_s or 0.0)
    try:
        done = asyncio.run(run(url, model, options, ignore_eos, load))
    except ClientError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False)
        raise typer.Exit(3) from None
    objective = Objective(ttft_ms, tpot_ms)
    summary = summarise(done.samples, objective)
    console = Console()
    console.print(f"model {done.model}", highlight=False)
    console.print(table(summary))
    for line in lines(summary, objective):
        console.print(line, highlight=False)
    if output is not None:
        write_json(output, Origin.here("benchmarks.load"), summary, done)
    if set(summary.statuses) != {OK}:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
