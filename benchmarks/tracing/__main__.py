"""What traces cost gateway and verifier: python -m benchmarks.tracing.

Invariant: processor time of tracing alone, by profile (profiled.py, entries.py), with stand-ins for both models, plus
that of the thread that sends spans (sending.py). The cost at a ratio is the mean of requests with and without spans.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.service_overhead import NUM_STREAMS, StandinSystem, write_standin
from benchmarks.harness.cell import running
from benchmarks.harness.cell_plan import GATEWAY, VERIFIER, WITHOUT_CONTROLLER, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import connected
from benchmarks.harness.scripted_controller import scripted_controller
from benchmarks.harness.standin import OVERRUN
from benchmarks.policies.plan import SLIDING
from benchmarks.tracing.entries import Entries, entries
from benchmarks.tracing.sending import sending_us, sink
from client.wire import DsdOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from shared.runtime.home import default_models_dir

SERVICES = (GATEWAY, VERIFIER)
RATIO, MAX_US = 0.01, 2.0  # at this ratio a token may cost so much at each of them
OFF, NOT_SAMPLED, SAMPLED = "off", "not sampled", "sampled"
SAMPLERS = {NOT_SAMPLED: "always_off", SAMPLED: "always_on"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class TracingCosts:
    """By service and kind of request: calls of a request, and microseconds of a token without sending. `sending_us`: of
    a span. `total_us`: of a token at the ratio, sending included."""

    num_tokens: int
    num_requests: int
    calls: dict[str, dict[str, float]]
    own_us: dict[str, dict[str, float]]
    sending_us: float
    ratio: float
    total_us: dict[str, float]
    complaints: list[str]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Run:
    """One running system, and what tracing cost its services."""

    num_tokens: int
    num_requests: int
    entries: dict[str, Entries]
    complaints: list[str]

    def calls(self, service: str) -> float:
        """A request."""
        return self.entries[service].num_calls / self.num_requests

    def own_us(self, service: str) -> float:
        """A token."""
        return self.entries[service].seconds * 1e6 / self.num_tokens


async def run(models: Path, env: dict[str, str], repeats: int, seed: int) -> Run:
    """Answers with sliding windows, NUM_STREAMS at once."""
    prompts = read_prompts(DEFAULT_PROMPTS)[: 2 * NUM_STREAMS]
    with TemporaryDirectory(prefix="dsd-bench-") as name:
        folder = Path(name)
        standin = write_standin(load_tokenizer(models / "target"), prompts, folder, seed)
        plan = CellPlan(models, names=WITHOUT_CONTROLLER, standin=standin, env=env, profiles=folder)
        num_tokens = num_requests = 0
        async with (
            running(plan, folder / "run", print) as cell,
            scripted_controller(cell.nats_url) as controller,
            connected(cell.url) as gateway,
        ):
            system = StandinSystem(cell, gateway, controller, prompts)
            await controller.choose(SLIDING)
            for number in range(repeats):
                answers = await system.answers(DsdOptions("adaptive"), NUM_STREAMS, number)
                num_tokens += sum(each.num_tokens for each in answers)
                num_requests += len(answers)
            complaints = [each for each in cell.complaints() if OVERRUN not in each]
        found = {service: entries(folder / f"{service}.prof") for service in SERVICES}
    return Run(num_tokens, num_requests, found, complaints)


async def measure(models: Path, repeats: int, seed: int) -> TracingCosts:
    async with sink() as receiver:
        per_span_us = await sending_us(receiver.url, repeats)
        runs = {OFF: await run(models, {}, repeats, seed)}
        for kind, sampler in SAMPLERS.items():
            env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_TRACES_SAMPLER": sampler}
            runs[kind] = await run(models, env, repeats, seed)
    sampled = runs[SAMPLED]
    total_us = {}
    for service in SERVICES:
        sent_us = per_span_us * sampled.entries[service].num_spans / sampled.num_tokens
        with_spans_us, without_us = sampled.own_us(service) + sent_us, runs[NOT_SAMPLED].own_us(service)
        total_us[service] = (1 - RATIO) * without_us + RATIO * with_spans_us
    return TracingCosts(
        num_tokens=sampled.num_tokens,
        num_requests=sampled.num_requests,
        calls={service: {kind: each.calls(service) for kind, each in runs.items()} for service in SERVICES},
        own_us={service: {kind: each.own_us(service) for kind, each in runs.items()} for service in SERVICES},
        sending_us=per_span_us,
        ratio=RATIO,
        total_us=total_us,
        complaints=[complaint for each in runs.values() for complaint in each.complaints],
        origin=Origin.here("benchmarks.tracing"),
    )


def table(costs: TracingCosts) -> Table:
    tokens = costs.num_tokens / costs.num_requests
    shown = Table("service", "requests", "calls a request", "µs a token", "limit", title=f"Traces, {tokens:.0f} tokens")
    for service in SERVICES:
        for kind, calls in costs.calls[service].items():
            shown.add_row(service, kind, f"{calls:.1f}", f"{costs.own_us[service][kind]:.3f}", "")
        shown.add_row(service, f"{costs.ratio:.0%} sampled", "", f"{costs.total_us[service]:.3f}", f"≤ {MAX_US}")
    shown.add_row("sending thread", "a span", "", f"{costs.sending_us:.1f} µs a span", "")
    for complaint in costs.complaints:
        shown.add_row("void", complaint)
    return shown


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of eight answers.")] = 10,
    folder: Annotated[Path, typer.Option(help="Folder for tracing.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measures with the tokenizer of the default pair."""
    costs = asyncio.run(measure(default_models_dir(), repeats, seed))
    write_result(folder / "tracing.json", costs)
    Console().print(table(costs))


if __name__ == "__main__":
    app()
