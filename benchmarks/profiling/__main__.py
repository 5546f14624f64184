"""What metrics, and the journal of the request inspector, cost a token: python -m benchmarks.profiling.

Real services around replayed stand-ins run under cProfile, which counts their calls into both. Each kind of call is
timed by itself, without the profiler: the median of its loops. Cost = calls a token x time of a call. The command ends
with status 1 if metrics or journal cost more than MAX_US.

Invariant: a kind of call without a time ends the benchmark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.service_overhead import StandinSystem, write_standin
from benchmarks.harness.cell import running
from benchmarks.harness.cell_plan import GATEWAY, VERIFIER, WITHOUT_CONTROLLER, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import connected
from benchmarks.harness.scripted_controller import scripted_controller
from benchmarks.policies.plan import SLIDING
from benchmarks.profiling.calls import INSPECTOR, METRICS, calls_into
from benchmarks.profiling.units import call_us
from client.wire import DsdOptions
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from shared.runtime.home import default_models_dir

SERVICES = (GATEWAY, VERIFIER)
MODES = {"target-only": DsdOptions("off"), "sliding": DsdOptions("adaptive")}
NUM_STREAMS = (1, 8)
MAX_US = 2.0  # of metrics for a token, and of a journal, in each service

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class MetricsCost:
    """Of one service in one mode. token_us: of metrics. journal_us: of the inspector, for a token, too. calls: of a
    token, by function."""

    num_tokens: int
    token_us: float
    journal_us: float
    calls: dict[str, float]

    @property
    def is_within(self) -> bool:
        return max(self.token_us, self.journal_us) <= MAX_US


@dataclass(frozen=True, slots=True)
class MetricsCosts:
    """costs: by mode, then by service. call_us: of each function."""

    costs: dict[str, dict[str, MetricsCost]]
    call_us: dict[str, float]
    origin: Origin

    @property
    def is_within(self) -> bool:
        return all(cost.is_within for services in self.costs.values() for cost in services.values())


async def measure(
    models: Path, speculation: DsdOptions, num_streams: int, repeats: int, seed: int, call_us: Mapping[str, float]
) -> dict[str, MetricsCost]:
    """What metrics cost in each service."""
    prompts = read_prompts(DEFAULT_PROMPTS)[: 2 * max(NUM_STREAMS)]
    with TemporaryDirectory(prefix="dsd-bench-") as name:
        folder = Path(name)
        standin = write_standin(load_tokenizer(models / "target"), prompts, folder, seed)
        plan = CellPlan(models, WITHOUT_CONTROLLER, is_pinned=False, standin=standin, profiles=folder)
        async with (
            running(plan, folder / "run", print) as cell,
            scripted_controller(cell.nats_url) as controller,
            connected(cell.url) as gateway,
        ):
            await controller.choose(SLIDING)
            system = StandinSystem(cell, gateway, controller, prompts)
            num_tokens = await system.num_tokens(speculation, num_streams, repeats)
        return {name: _cost(folder / f"{name}.prof", num_tokens, call_us) for name in SERVICES}


def _cost(profile: Path, num_tokens: int, call_us: Mapping[str, float]) -> MetricsCost:
    metrics, journal = calls_into(METRICS, profile), calls_into(INSPECTOR, profile)
    if unknown := (metrics + journal).keys() - call_us.keys():
        raise ValueError(f"no time of {sorted(unknown)}: add it to benchmarks/profiling/units.py")
    token_us, journal_us = (
        sum(number * call_us[name] for name, number in calls.items()) / num_tokens for calls in (metrics, journal)
    )
    calls = {name: number / num_tokens for name, number in (metrics + journal).most_common()}
    return MetricsCost(num_tokens, token_us, journal_us, calls)


def table(found: MetricsCosts) -> Table:
    columns = ("mode", "service", "metrics", "journal", "calls a token")
    shown = Table(*columns, title=f"Cost of a token in µs; the limit of each is {MAX_US:g}")
    for mode, costs in found.costs.items():
        for service, cost in costs.items():
            most = ", ".join(f"{name} {number:.2f}" for name, number in list(cost.calls.items())[:4])
            shown.add_row(mode, service, _judged(cost.token_us), _judged(cost.journal_us), most)
    return shown


def _judged(us: float) -> str:
    return f"{us:.2f}" if us <= MAX_US else f"{us:.2f} FAILED"


@app.command()
def main(
    repeats: Annotated[int, typer.Option(min=1, help="Answers of each stream.")] = 10,
    folder: Annotated[Path, typer.Option(help="Folder for metrics_cost.json.")] = REPORTS,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measures with the tokenizer of the default pair."""
    models, costs, units = default_models_dir(), {}, call_us()
    for mode, speculation in MODES.items():
        for num in NUM_STREAMS:
            measured = measure(models, speculation, num, repeats, seed, units)
            costs[f"{mode}, streams: {num}"] = asyncio.run(measured)
    found = MetricsCosts(costs, units, Origin.here("benchmarks.profiling"))
    write_result(folder / "metrics_cost.json", found)
    Console().print(table(found))
    Console().print(", ".join(f"{name} {us:.2f} µs" for name, us in units.items()))
    if not found.is_within:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
