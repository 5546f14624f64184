"""Ten minutes under load: does memory stay, does anything complain? python -m benchmarks.experiments.soak.

Invariant: memory counts from /proc, of every process, all through the run; a process whose own memory in the last
third of it is above that of the middle third by more than GROWTH_MIB has grown. Growth, a peak above what is allowed,
or any error in any log fails the run. Its own is what no file holds too: pages of a model's file, as rows of
embeddings, come in when a text needs them, up to the file's size, and the kernel may drop them at any time. The peak
counts them.
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

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import cell as cells
from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.cell_plan import CONTROLLER, DRAFTER, GATEWAY, VERIFIER, CellPlan
from benchmarks.harness.latency import OK, Objective, Sample, Spread, summarise
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import OWN
from benchmarks.load.arrivals import closed_loop
from client.gateway import GatewayClient
from client.wire import AnswerOptions
from model_zoo.prompt_file import read_prompts
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.architecture import read_config
from shared.runtime.home import default_models_dir

FOLDER = Path(__file__).parents[2] / "docs" / "reports" / "benchmarks"
LOOK_S = 2.0
GROWTH_MIB = 8.0
MIB = 1 << 20

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in MiB. `allowed`: the most that the peak may be; None: nothing is asked."""

    peak: float  # pages of files included, unlike below
    middle: float  # median of the run's middle third
    last: float
    allowed: float | None

    @property
    def is_flat(self) -> bool:
        return self.last - self.middle <= GROWTH_MIB

    @property
    def is_within(self) -> bool:
        return self.allowed is None or self.peak <= self.allowed


@dataclass(frozen=True, slots=True)
class Soak:
    """A run."""

    seconds: float  # in which requests were begun
    duration_s: float  # until the last answer had ended
    statuses: dict[str, int]
    num_tokens: int
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    memory: dict[str, Memory]
    complaints: list[str]
    origin: Origin


def allowed_mib(models: Path, draft: str) -> dict[str, float]:
    """What each service may take: its model, the KV cache that is configured, and room."""
    target = sum(path.stat().st_size for path in (models / "target").glob("*.safetensors")) / MIB
    graph = sum(path.stat().st_size for path in (models / f"draft-{draft}").glob("*.onnx*")) / MIB
    return {
        VERIFIER: target + kv_mib(models / "target") + 500,
        DRAFTER: 1.5 * graph + 250,
        GATEWAY: 300,
        CONTROLLER: 120,
    }


def kv_mib(target: Path) -> float:
    """The KV cache of as many tokens as are configured, in bfloat16."""
    config = read_config(str(target)).get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return float(VerifierSettings.model_fields["kv_tokens"].default * token_bytes / MIB)


def own_mib(pid: int) -> float:
    """Memory of a process now, without pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / 1024


def spread_of(figures: Sequence[float], peak: float, allowed: float | None) -> Memory:
    """Of a process whose memory was looked at through the run."""
    _, middle, last = np.array_split(np.array(figures), 3)
    return Memory(peak, float(np.median(middle)), float(np.median(last)), allowed)


async def watch(cell: cells.Cell, seen: dict[str, list[float]]) -> None:
    """Notes every process's memory until cancelled."""
    while True:
        for name, pid in cell.pids().items():
            seen.setdefault(name, []).append(own_mib(pid))
        await asyncio.sleep(LOOK_S)


async def load(gateway: GatewayClient, seconds: float, num_clients: int, max_tokens: int) -> list[Sample]:
    """Clients that ask all the time; each answer that was begun in time is waited for."""
    options, model = AnswerOptions(max_tokens, temperature=0.8, top_p=0.95), await gateway.first_model()
    ends_at, answers = time.monotonic() + seconds, itertools.count(1)

    async def ask(due: Due) -> Sample:
        sample = await measure(gateway, Asking(model, options), due)
        if (number := next(answers)) % (4 * num_clients) == 0:
            console.print(f"{number} answers, {max(0.0, ends_at - time.monotonic()):.0f} s left", highlight=False)
        return sample

    return await closed_loop(ask, read_prompts(OWN), num_clients, None, think_s=0.0, seconds=seconds)


async def run(models: Path, draft: str, seconds: float, num_clients: int, max_tokens: int) -> Soak:
    seen: dict[str, list[float]] = {}
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with (
            cells.running(CellPlan(models, draft), Path(folder), console.print) as cell,
            connected(cell.url) as gateway,
        ):
            watching = asyncio.create_task(watch(cell, seen), name="watch")
            samples = await load(gateway, seconds, num_clients, max_tokens)
            watching.cancel()
            await asyncio.wait({watching})
            usage, complaints = cell.usage(), cell.complaints()
    allowed = allowed_mib(models, draft)
    memory = {name: spread_of(figures, usage[name].peak_rss_mib, allowed.get(name)) for name, figures in seen.items()}
    complaints += [f"a request came to {sample.status}" for sample in samples if sample.status != OK]
    found = summarise(samples, Objective())
    return Soak(
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


def table(soak: Soak) -> Table:
    """For a terminal."""
    title = f"{soak.duration_s:.0f} s, {soak.num_tokens} tokens, {soak.num_tokens / soak.duration_s:.1f} tokens/s"
    shown = Table("process", "peak, MiB", "allowed", "within", "own, middle third", "last third", "flat", title=title)
    for name, memory in sorted(soak.memory.items()):
        allowed = ("", "") if memory.allowed is None else (f"{memory.allowed:.0f}", _yes(memory.is_within))
        figures = f"{memory.middle:.1f}", f"{memory.last:.1f}", _yes(memory.is_flat)
        shown.add_row(name, f"{memory.peak:.0f}", *allowed, *figures)
    for complaint in soak.complaints:
        shown.add_row("complaint", complaint)
    return shown


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 8,
    draft: Annotated[str, typer.Option(help="Draft model: int8 or int4.")] = "int8",
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 128,
    folder: Annotated[Path, typer.Option(help="Where soak.json goes.")] = FOLDER,
) -> None:
    """Runs the default pair with every service under load; exit status 1 where something grew, took too much or
    complained."""
    soak = asyncio.run(run(default_models_dir(), draft, 60 * minutes, clients, max_tokens))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(soak), indent=1))
    Console().print(table(soak))
    if soak.complaints or not all(memory.is_flat and memory.is_within for memory in soak.memory.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
