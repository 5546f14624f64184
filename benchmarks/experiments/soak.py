"""Ten minutes under load, with a check of memory and logs: python -m benchmarks.experiments.soak.

Invariant: the run fails if the memory of a process grows by more than GROWTH_MIB from the middle third of the run to
the last, if its peak exceeds its limit, or if a log holds an error. Growth counts anonymous and shared memory only:
pages of a model's file are loaded on demand, up to the size of the file, and the kernel may drop them at any time. The
peak includes them. All figures are from /proc.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.cell import RunningCell, own_mib, running
from benchmarks.harness.cell_plan import CONTROLLER, DRAFTER, GATEWAY, VERIFIER, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.latency import OK, Distribution, LatencyObjective, RequestSample, summarise
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.load.arrivals import closed_loop
from client.gateway import GatewayClient
from client.wire import AnswerOptions
from model_zoo.prompt_file import read_prompts
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.architecture import read_config
from shared.runtime.home import default_models_dir

SAMPLE_S = 2.0  # between two readings of memory
GROWTH_MIB = 8.0
MIB = 1 << 20
YES = {True: "yes", False: "no"}

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process, MiB."""

    peak: float  # resident, pages of files included
    middle: float  # median of the middle third of the run, without pages of files
    last: float  # the same of the last third
    allowed: float | None  # limit of the peak; None: no limit

    @property
    def is_flat(self) -> bool:
        return self.last - self.middle <= GROWTH_MIB

    @property
    def is_within(self) -> bool:
        return self.allowed is None or self.peak <= self.allowed


@dataclass(frozen=True, slots=True)
class SoakResult:
    """The result of a run."""

    seconds: float  # in which requests are sent
    duration_s: float  # until the last answer ends
    statuses: dict[str, int]
    num_tokens: int
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    memory: dict[str, ProcessMemory]
    complaints: list[str]
    origin: Origin


def allowed_mib(models: Path, draft: str) -> dict[str, float]:
    """Limit of each service: its model, the configured KV cache, and headroom."""
    target = sum(path.stat().st_size for path in (models / "target").glob("*.safetensors")) / MIB
    graph = sum(path.stat().st_size for path in (models / f"draft-{draft}").glob("*.onnx*")) / MIB
    return {
        VERIFIER: target + kv_mib(models / "target") + 500,
        DRAFTER: 1.5 * graph + 250,
        GATEWAY: 300,
        CONTROLLER: 120,
    }


def kv_mib(target: Path) -> float:
    """Size of the configured KV cache, in bfloat16."""
    config = read_config(str(target)).get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return float(VerifierSettings.model_fields["kv_tokens"].default * token_bytes / MIB)


def memory_of(readings: Sequence[float], peak: float, allowed: float | None) -> ProcessMemory:
    """Summarises the readings of one process."""
    _, middle, last = np.array_split(np.array(readings), 3)
    return ProcessMemory(peak, float(np.median(middle)), float(np.median(last)), allowed)


async def record_memory(cell: RunningCell, seen: dict[str, list[float]]) -> None:
    """Reads the memory of every process until cancelled."""
    while True:
        for name, pid in cell.pids().items():
            seen.setdefault(name, []).append(own_mib(pid))
        await asyncio.sleep(SAMPLE_S)


async def load(gateway: GatewayClient, seconds: float, num_clients: int, max_tokens: int) -> list[RequestSample]:
    """A closed loop without pauses; answers in progress at its end are read to their end."""
    options, model = AnswerOptions(max_tokens, temperature=0.8, top_p=0.95), await gateway.first_model()
    ends_at, answers = time.monotonic() + seconds, itertools.count(1)

    async def send(request: ScheduledRequest) -> RequestSample:
        sample = await measure_request(gateway, RequestTemplate(model, options), request)
        if (number := next(answers)) % (4 * num_clients) == 0:
            console.print(f"{number} answers, {max(0.0, ends_at - time.monotonic()):.0f} s left", highlight=False)
        return sample

    return await closed_loop(send, read_prompts(DEFAULT_PROMPTS), num_clients, None, think_s=0.0, seconds=seconds)


async def run(models: Path, draft: str, seconds: float, num_clients: int, max_tokens: int) -> SoakResult:
    seen: dict[str, list[float]] = {}
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with (
            running(CellPlan(models, drafts=(draft,)), Path(folder), console.print) as cell,
            connected(cell.url) as gateway,
        ):
            watching = asyncio.create_task(record_memory(cell, seen), name="record memory")
            samples = await load(gateway, seconds, num_clients, max_tokens)
            watching.cancel()
            await asyncio.wait({watching})
            usage, complaints = cell.usage(), cell.complaints()
    allowed = allowed_mib(models, draft)
    memory = {name: memory_of(readings, usage[name].peak_rss_mib, allowed.get(name)) for name, readings in seen.items()}
    complaints += [f"a request failed: {sample.status}" for sample in samples if sample.status != OK]
    found = summarise(samples, LatencyObjective())
    return SoakResult(
        seconds=seconds,
        duration_s=found.duration_s,
        statuses=found.statuses,
        num_tokens=found.num_tokens,
        ttft_ms=found.ttft_ms,
        tpot_ms=found.tpot_ms,
        memory=memory,
        complaints=complaints,
        origin=Origin.here("benchmarks.experiments.soak"),
    )


def table(soak: SoakResult) -> Table:
    title = f"{soak.duration_s:.0f} s, {soak.num_tokens} tokens, {soak.num_tokens / soak.duration_s:.1f} tokens/s"
    shown = Table("process", "peak, MiB", "limit", "within", "middle third", "last third", "flat", title=title)
    for name, memory in sorted(soak.memory.items()):
        allowed = ("", "") if memory.allowed is None else (f"{memory.allowed:.0f}", YES[memory.is_within])
        figures = f"{memory.middle:.1f}", f"{memory.last:.1f}", YES[memory.is_flat]
        shown.add_row(name, f"{memory.peak:.0f}", *allowed, *figures)
    for complaint in soak.complaints:
        shown.add_row("complaint", complaint)
    return shown


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients.")] = 8,
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int8",
    max_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens of an answer.")] = 128,
    folder: Annotated[Path, typer.Option(help="Folder for soak.json.")] = REPORTS,
) -> None:
    """Runs the default pair with every service under load.

    Exits with status 1 on memory growth, a peak above its limit, a failed request or an error in a log.
    """
    soak = asyncio.run(run(default_models_dir(), draft, 60 * minutes, clients, max_tokens))
    write_result(folder / "soak.json", soak)
    Console().print(table(soak))
    if soak.complaints or not all(memory.is_flat and memory.is_within for memory in soak.memory.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
