"""A load generator for a gateway's HTTP API: python -m benchmarks.load --help.

Open loop: --rate (Poisson) or --trace; closed loop: --clients. A gateway's API key is read from DSD_API_KEY.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.files import write_result
from benchmarks.harness.latency import OK, PERCENTILES, LatencyObjective, RequestSample, RunSummary, summarise
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, connected, measure_request
from benchmarks.load.arrivals import TraceArrival, closed_loop, open_loop, poisson_times, read_arrivals
from client.gateway import KEY_VARIABLE, ClientError
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Open loop at `arrivals`, or closed loop with `num_clients` if there are none."""

    prompts: Sequence[str]
    arrivals: Sequence[TraceArrival | float]
    num_clients: int
    num_requests: int
    think_s: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The model that answered, and a sample of every request."""

    model: str
    samples: list[RequestSample]


async def run(url: str, model: str | None, options: AnswerOptions, ignore_eos: bool, load: LoadSpec) -> LoadResult:
    """Sends all requests. Raises ClientError if the gateway cannot be reached at the start."""
    async with connected(url, os.environ.get(KEY_VARIABLE, "")) as gateway:
        template = RequestTemplate(model or await gateway.first_model(), options, ignore_eos)
        send = partial(measure_request, gateway, template)
        if load.arrivals:
            samples = await open_loop(send, load.prompts, load.arrivals)
        else:
            samples = await closed_loop(send, load.prompts, load.num_clients, load.num_requests, load.think_s)
    return LoadResult(template.model, samples)


def table(summary: RunSummary) -> Table:
    """Percentiles, one row per figure."""
    shown = Table()
    for heading in ("", "number", "mean", *(f"p{each}" for each in PERCENTILES)):
        shown.add_column(heading, justify="left" if not heading else "right")
    rows = (("TTFT ms", summary.ttft_ms), ("TPOT ms", summary.tpot_ms), ("end to end ms", summary.total_ms))
    for name, figure in (*rows, ("sent late ms", summary.sent_late_ms)):
        if figure is not None:
            shown.add_row(name, str(figure.count), *(f"{value:.1f}" for value in astuple(figure)[1:]))
    return shown


def lines(summary: RunSummary, objective: LatencyObjective) -> list[str]:
    """What does not fit the table."""
    statuses = ", ".join(f"{number} {status}" for status, number in sorted(summary.statuses.items()))
    found = [
        f"requests: {statuses}; {summary.duration_s:.1f} s in all",
        f"{summary.tokens_per_s:.1f} tokens/s ({summary.num_tokens} tokens)",
    ]
    if objective != LatencyObjective():
        limits = f"TTFT ≤ {objective.ttft_ms:g} ms, TPOT ≤ {objective.tpot_ms:g} ms"
        share = f"{summary.goodput_share:.0%} of requests"
        found.append(f"goodput {summary.goodput_tokens_per_s:.1f} tokens/s, {share} ({limits})")
    if summary.acceptance is not None:
        fates = f"{summary.accepted} accepted, {summary.late} late, {summary.rejected} rejected"
        found.append(f"guesses: {fates}, {summary.discarded} discarded; acceptance {summary.acceptance:.3f}")
    return found


def show(model: str, summary: RunSummary, objective: LatencyObjective) -> None:
    console = Console()
    console.print(f"model {model}", highlight=False)
    console.print(table(summary))
    for line in lines(summary, objective):
        console.print(line, highlight=False)


def report_of(origin: Origin, summary: RunSummary, result: LoadResult) -> dict[str, object]:
    """The content of --output."""
    samples = [asdict(each) | {"ttft_ms": each.ttft_ms, "tpot_ms": each.tpot_ms} for each in result.samples]
    return {"origin": origin, "model": result.model, "summary": summary, "samples": samples}


@app.command()
def main(
    url: Annotated[str, typer.Option(envvar="DSD_URL", help="Address of the gateway.")] = "http://127.0.0.1:8080",
    model: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the first one served")] = None,
    prompts: Annotated[
        Path, typer.Option(help="JSONL file with prompts.", show_default="tests/data/prompts.jsonl")
    ] = DEFAULT_PROMPTS,
    field: Annotated[
        str | None, typer.Option(help="Field that holds the prompt; found by its name unless given.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Open loop: mean requests per second (Poisson).")] = None,
    trace: Annotated[Path | None, typer.Option(help="Open loop: JSONL with arrival_ms and target_tokens.")] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="Closed loop: number of clients.", show_default="1")
    ] = None,
    think_s: Annotated[
        float | None, typer.Option(min=0, help="Closed loop: pause of a client between requests.", show_default="0")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests in all.", show_default="one per prompt")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 96,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers continue to max_tokens.")] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of arrivals and of sampling.")] = 1,
    speculation: Annotated[str | None, typer.Option(help="off, static or adaptive.")] = None,
    window: Annotated[int | None, typer.Option(min=1, max=64, help="Window of static speculation.")] = None,
    ttft_ms: Annotated[float, typer.Option(min=0, help="TTFT limit for goodput.")] = float("inf"),
    tpot_ms: Annotated[float, typer.Option(min=0, help="TPOT limit for goodput.")] = float("inf"),
    output: Annotated[Path | None, typer.Option(help="Write summary and samples to this JSON file.")] = None,
) -> None:
    """Puts a gateway under load and reports latency, throughput and goodput."""
    if rate is not None and trace is not None:
        raise typer.BadParameter("use either --rate or --trace")
    if (rate is not None or trace is not None) and (clients is not None or think_s is not None):
        raise typer.BadParameter(
            "--clients and --think-s are for a closed loop: do not use them with --rate or --trace"
        )
    try:
        texts = read_prompts(prompts, field)
        arrivals: Sequence[TraceArrival | float] = []
        if trace is not None:
            arrivals = read_arrivals(trace)[:requests]
        elif rate is not None:
            arrivals = poisson_times(rate, requests or len(texts), seed)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    mode = speculation or ("static" if window is not None else None)
    options = AnswerOptions(max_tokens, temperature, seed=seed, speculation=DsdOptions(mode, window))
    load = LoadSpec(texts, arrivals, clients or 1, requests or len(texts), think_s or 0.0)
    try:
        result = asyncio.run(run(url, model, options, ignore_eos, load))
    except ClientError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False)
        raise typer.Exit(3) from None
    objective = LatencyObjective(ttft_ms, tpot_ms)
    summary = summarise(result.samples, objective)
    show(result.model, summary, objective)
    if output is not None:
        write_result(output, report_of(Origin.here("benchmarks.load"), summary, result))
    if set(summary.statuses) != {OK}:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
