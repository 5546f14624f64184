"""Compares DSD on vLLM with vLLM's own server: python -m benchmarks.experiments.against_vllm.

Invariant: all servers hold the same target in the same dtype, compiled, and answer the same prompts greedily with the
same number of tokens, in turn in one run. Each model has one thread on one core, except that of "both cores". What does
not compute it, HTTP servers, vLLM's own scheduler, bus, drafter and this client, is on the other core.

Each round asks every way the same prompts, in random order: one for each client at once, or from the same one on with
steady load (benchmarks/load/steady.py), where a faster way gets further. The default prompts are shorter than a block
of the prefix cache, so nobody reuses any; of longer ones that come again, every way does.

The time between passes is that of a whole round, from the requests to the last token, in which DSD's verifier computes
no pass.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeAlias

import numpy as np
import typer
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.harness.cell import RunningCell, exit_on_signals, running
from benchmarks.harness.cell_plan import VERIFIER, CellPlan
from benchmarks.harness.files import REPORTS, write_result
from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio, compare
from benchmarks.harness.pinned import move
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.load.steady import AnswerFailed, SteadyTimes, steady_load
from benchmarks.peers import server as peer
from benchmarks.peers import vllm_server
from benchmarks.peers.vllm_server import ServerPlan
from client.wire import AnswerOptions, DsdOptions
from model_zoo.prompt_file import read_prompts
from services.local.engine import EngineName, verifier_engine
from shared.runtime.home import default_models_dir
from shared.runtime.machine import fast_dtype

PLAIN, BOTH, NGRAM, DRAFT_MODEL = "vLLM", "vLLM, both cores", "vLLM, n-gram", "vLLM, draft model"
ALONE, DSD, DSD_30 = "DSD, target only", "DSD", "DSD, RTT 30 ms"
WAYS = {"both": BOTH, "n-gram": NGRAM, "draft": DRAFT_MODEL, "DSD": DSD, "DSD30": DSD_30}
CLIENTS = (1, 4, 8)
BETWEEN_PASSES = (1, 16)  # sessions
MAX_VOIDED = 5  # rounds of a cell
MAX_MODEL_LEN = 2048
NUM_GUESSES = 4  # of vLLM's own ways
STRIDE = 7  # requests of a client from which the next round's begin, with steady load
# Ours, theirs, number of clients, and the least ratio of speeds: it holds if the interval's lower end reaches it
Limit: TypeAlias = tuple[str, str, int, float]
LIMITS: tuple[Limit, ...] = ((ALONE, PLAIN, 1, 0.95), (ALONE, PLAIN, 8, 0.95))
LIMITS_OF_DRAFTS: dict[str, tuple[Limit, ...]] = {
    "int8": (
        *((DSD, PLAIN, 1, 1.6), (DSD, BOTH, 1, 1.1), (DSD, ALONE, 1, 1.6), (DSD, ALONE, 4, 0.95)),
        *((DSD, ALONE, 8, 0.95), (DSD_30, ALONE, 4, 0.95), (DSD_30, ALONE, 8, 0.95)),
    ),
    "distilled": ((DSD, ALONE, 1, 1.3), (DSD, ALONE, 8, 1.2)),
}

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Server:
    """A way to be asked. vllm: the server to resume meanwhile."""

    url: str
    template: RequestTemplate
    vllm: peer.Server | None = None


@dataclass(frozen=True, slots=True)
class ClientsCell:
    """Seconds of each round by way, and tokens/s / those of plain vLLM. is_steady: seconds are those of as many tokens
    as a round without steady load has."""

    num_clients: int
    seconds: dict[str, list[float]]
    ttft_ms: dict[str, float]
    speeds: dict[str, float]
    to_plain: dict[str, Ratio]
    to_alone: dict[str, Ratio]
    voided: list[str]  # why a round was asked again for all ways
    is_steady: bool = False


@dataclass(frozen=True, slots=True)
class BetweenPasses:
    """A round of target-only sessions: mean duration of a pass, and of the time between two, in ms."""

    num_sessions: int
    pass_ms: float
    between_ms: float


@dataclass(frozen=True, slots=True)
class VllmComparison:
    """All cells."""

    vllm: str
    num_tokens: int
    cells: list[ClientsCell]
    between_passes: list[BetweenPasses]
    complaints: list[str]
    origin: Origin
    draft: str = "int8"  # of DSD
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Models:
    """draft: of DSD, int8, int4, distilled or a folder. draft_of_vllm: folder of a model; None: the way is left out."""

    draft: str
    draft_of_vllm: Path | None
    dtype: str  # of the target


def plans(python: Path, target: Path, models: Models) -> list[ServerPlan]:
    """vLLM's own servers."""
    other, core = sorted(os.sched_getaffinity(0))[:2]
    flags = ("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "64", "--dtype", models.dtype)

    def plan(name: str, cores: tuple[int, ...], **speculation: object) -> ServerPlan:
        return ServerPlan(python, target, name, cores, other, flags, speculation)

    ngram = {"prompt_lookup_max": 4, "prompt_lookup_min": 2, "num_speculative_tokens": NUM_GUESSES}
    found = [plan(PLAIN, (core,)), plan(BOTH, (other, core)), plan(NGRAM, (core,), method="ngram", **ngram)]
    if models.draft_of_vllm is not None:
        small = {"model": str(models.draft_of_vllm), "num_speculative_tokens": NUM_GUESSES}
        found.append(plan(DRAFT_MODEL, (core,), method="draft_model", **small))
    return found


@asynccontextmanager
async def servers(
    python: Path, place: Path, models: Models, ways: Sequence[str], max_tokens: int, folder: Path
) -> AsyncIterator[tuple[dict[str, Server], list[RunningCell]]]:
    """The chosen ways, and the cells of DSD. They start one after the other: each compiles."""
    engine = verifier_engine(EngineName.VLLM, python)
    env = {"DSD_VLLM_ARGS": f"--max-model-len {MAX_MODEL_LEN}", "DSD_DTYPE": models.dtype}
    env |= {"VLLM_CPU_KVCACHE_SPACE": vllm_server.KV_GIB}
    found: dict[str, Server] = {}
    cells: list[RunningCell] = []

    def template(model: str, speculation: str | None) -> RequestTemplate:
        options = AnswerOptions(max_tokens, temperature=0.0)
        if speculation:
            options = AnswerOptions(max_tokens, temperature=0.0, speculation=DsdOptions(speculation))
        return RequestTemplate(model, options, ignore_eos=True)

    async with AsyncExitStack() as stack:
        for plan in plans(python, place / "target", models):
            if plan.name not in ways:
                continue
            path = folder / str(len(found))
            path.mkdir()
            server = await stack.enter_async_context(vllm_server.running(plan, path, console.print))
            found[plan.name] = Server(server.url, template(plan.name, None), server)
            console.print(f"{plan.name} is ready")
        for name, rtt_ms in ((DSD, 0.0), (DSD_30, 30.0)):
            if name not in ways:
                continue
            path = folder / name.replace(" ", "-")
            path.mkdir()
            link = LinkConditions(delay_ms=rtt_ms / 2)
            cell_plan = CellPlan(place, link=link, drafts=(models.draft,), engine=engine, env=env)
            cell = await stack.enter_async_context(running(cell_plan, path, console.print))
            cells.append(cell)
            async with connected(cell.url) as gateway:
                model = await gateway.first_model()
            found[name] = Server(cell.url, template(model, "adaptive"))
            if ALONE not in found:
                found[ALONE] = Server(cell.url, template(model, "off"))
            console.print(f"{name} is ready")
        yield found, cells


async def ask(server: Server, prompts: Sequence[str], num_clients: int, round_number: int) -> tuple[float, list[float]]:
    """Seconds to answer a prompt for each client, asked at once, and the times to their first tokens in ms."""
    texts = [prompts[(round_number * num_clients + each) % len(prompts)] for each in range(num_clients)]
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        if server.vllm is not None:
            stack.enter_context(server.vllm.resumed())
        gateway = await stack.enter_async_context(connected(server.url))
        samples = await asyncio.gather(
            *(
                measure_request(gateway, server.template, ScheduledRequest(number, prompt, started, started))
                for number, prompt in enumerate(texts)
            )
        )
    for each in samples:
        if each.status != OK or each.num_tokens != server.template.options.max_tokens:
            raise RuntimeError(f"{server.template.model}: a request failed: {each.status}, {each.num_tokens} tokens")
    return time.monotonic() - started, [each.ttft_ms or 0.0 for each in samples]


async def ask_steadily(
    server: Server, prompts: Sequence[str], num_clients: int, round_number: int
) -> tuple[float, list[float]]:
    """As `ask`, with steady load: the seconds that as many tokens take."""
    num_tokens = server.template.options.max_tokens or 0
    async with AsyncExitStack() as stack:
        if server.vllm is not None:
            stack.enter_context(server.vllm.resumed())
        gateway = await stack.enter_async_context(connected(server.url))

        async def one(client: int, number: int) -> RequestSample:
            place, now = (STRIDE * round_number + number) * num_clients + client, time.monotonic()
            scheduled = ScheduledRequest(number, prompts[place % len(prompts)], now, now)
            return await measure_request(gateway, server.template, scheduled)

        try:
            load = await steady_load(one, num_clients, num_tokens, SteadyTimes())
        except ExceptionGroup as failures:
            if (failed := failures.subgroup(AnswerFailed)) is None:
                raise
            raise RuntimeError(f"{server.template.model}: {failed.exceptions[0]}") from failures
    return num_clients * num_tokens / load.tokens_per_s, load.ttft_ms


Asking: TypeAlias = Callable[[Server, Sequence[str], int, int], Awaitable[tuple[float, list[float]]]]


async def measure(
    found: dict[str, Server],
    prompts: Sequence[str],
    num_clients: int,
    num_rounds: int,
    num_tokens: int,
    seed: int,
    asking: Asking,
) -> ClientsCell:
    """Rounds of all ways; the first warms up. A round with a failed request is asked again."""
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    ttft: dict[str, list[float]] = {name: [] for name in found}
    voided: list[str] = []
    number = 0
    while len(seconds[PLAIN]) < num_rounds:
        try:
            names = order.sample(list(found), len(found))
            asked = {name: await asking(found[name], prompts, num_clients, number) for name in names}
        except RuntimeError as error:
            voided.append(str(error))
            console.print(f"void: {error}")
            if len(voided) > MAX_VOIDED:
                raise
            continue
        number += 1
        if number > 1:
            for name, (took_s, firsts) in asked.items():
                seconds[name].append(took_s)
                ttft[name] += firsts
        console.print(f"{num_clients} clients, round {number - 1} of {num_rounds}")

    def ratios(base: str) -> dict[str, Ratio]:
        if base not in seconds:
            return {}
        theirs = np.array(seconds[base])[:, None]
        return {name: compare(theirs, np.array(took)[:, None], seed=seed) for name, took in seconds.items()}

    total = num_clients * num_tokens * num_rounds
    speeds = {name: total / sum(took) for name, took in seconds.items()}
    medians = {name: float(np.median(each)) for name, each in ttft.items()}
    return ClientsCell(
        num_clients, seconds, medians, speeds, ratios(PLAIN), ratios(ALONE), voided, asking is ask_steadily
    )


async def measure_between_passes(
    cell: RunningCell, server: Server, prompts: Sequence[str], num_sessions: int
) -> BetweenPasses:
    before = await _passes(cell)
    took_s, _ = await ask(server, prompts, num_sessions, 0)
    num_passes, computing_s = (new - old for new, old in zip(await _passes(cell), before, strict=True))
    return BetweenPasses(num_sessions, computing_s / num_passes * 1e3, (took_s - computing_s) / num_passes * 1e3)


async def _passes(cell: RunningCell) -> tuple[float, float]:
    """The verifier's number of passes and their seconds so far."""
    async with ClientSession() as http, http.get(f"{cell.children[VERIFIER].urls[-1]}/metrics") as response:
        text = await response.text()
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return found["dsd_verifier_pass_seconds_count"], found["dsd_verifier_pass_seconds_sum"]


async def run(
    python: Path,
    models: Models,
    prompts: Sequence[str],
    ways: Sequence[str],
    num_rounds: int,
    max_tokens: int,
    clients: Sequence[int],
    seed: int,
    asking: Asking,
) -> VllmComparison:
    other = min(os.sched_getaffinity(0))
    origin = Origin.here("benchmarks.experiments.against_vllm")  # before this process gives up a core
    with TemporaryDirectory(prefix="dsd-bench-") as folder:
        async with servers(python, default_models_dir(), models, ways, max_tokens, Path(folder)) as (found, cells):
            for pid in (pid for cell in cells for name, pid in cell.pids().items() if name != VERIFIER):
                move(pid, other)
            move(os.getpid(), other)
            for cell in cells:
                cell.begin()
            measured, failed = [], []
            for num_clients in clients:
                try:
                    measured.append(await measure(found, prompts, num_clients, num_rounds, max_tokens, seed, asking))
                except RuntimeError as error:
                    failed.append(f"{num_clients} clients: {error}")
            between = [
                await measure_between_passes(cells[0], found[ALONE], prompts, num_sessions)
                for num_sessions in BETWEEN_PASSES
                if cells
            ]
            complaints = [*failed, *(text for cell in cells for text in cell.complaints())]
    version = await vllm_server.version_of(python)
    return VllmComparison(version, max_tokens, measured, between, complaints, origin, models.draft, models.dtype)


def table(found: VllmComparison) -> Table:
    shown = Table("clients", "way", "tokens/s", "to vLLM", "to target only", "TTFT ms", title=f"against {found.vllm}")
    for cell in found.cells:
        for name, speed in cell.speeds.items():
            row = (str(cell.to_plain[name]), str(cell.to_alone.get(name, "")), f"{cell.ttft_ms[name]:.0f}")
            shown.add_row(f"{cell.num_clients}{', steady' if cell.is_steady else ''}", name, f"{speed:.1f}", *row)
        for ours, theirs, num_clients, least in (*LIMITS, *LIMITS_OF_DRAFTS.get(found.draft, ())):
            if num_clients == cell.num_clients and {ours, theirs} <= cell.seconds.keys():
                ratio = compare(np.array(cell.seconds[theirs])[:, None], np.array(cell.seconds[ours])[:, None])
                held = "holds" if ratio.low >= least else "open" if ratio.high >= least else "fails"
                shown.add_row(str(num_clients), f"{ours} / {theirs}", f"≥ {least}: {held}", str(ratio))
    for each in found.between_passes:
        share = f"{each.between_ms / each.pass_ms:.1%} of a pass of {each.pass_ms:.1f} ms"
        shown.add_row(str(each.num_sessions), "between passes", f"{each.between_ms:.2f} ms", share)
    for complaint in found.complaints:
        shown.add_row("void", complaint)
    return shown


@app.command()
def main(
    python: Annotated[Path, typer.Option(help="Python that has vLLM.")] = Path(".venv-vllm/bin/python"),
    draft_model: Annotated[
        Path | None, typer.Option(help="Folder of a draft model for vLLM's own speculation.")
    ] = None,
    draft: Annotated[str, typer.Option(help="DSD's draft: int8, int4, distilled or a folder.")] = "int8",
    ways: Annotated[
        list[str] | None,
        typer.Option(help="Servers, of vLLM (always), both, n-gram, draft, DSD, DSD30; repeat it. Default: all."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of each cell.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 128,
    clients: Annotated[list[int] | None, typer.Option(help="Numbers of clients; repeat it.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for against_vllm.json.")] = REPORTS,
    seed: Annotated[int, typer.Option(help="Seed of the order within a round.")] = 1,
    prompts: Annotated[
        Path, typer.Option(help="JSONL file with prompts.", show_default="tests/data/prompts.jsonl")
    ] = DEFAULT_PROMPTS,
    steady: Annotated[
        bool,
        typer.Option("--steady", help="Clients ask again as soon as they have their answers; 24 s a way and round."),
    ] = False,
) -> None:
    """Compares DSD on vLLM with vLLM's own server on this machine."""
    exit_on_signals()
    if unknown := set(ways or ()) - set(WAYS):
        raise typer.BadParameter(f"{unknown.pop()} is none of {', '.join(WAYS)}", param_hint="--ways")
    chosen = [PLAIN, *(WAYS[way] for way in ways or WAYS)]
    models, numbers = Models(draft, draft_model, fast_dtype()), clients or list(CLIENTS)
    asking = ask_steadily if steady else ask
    found = asyncio.run(run(python, models, read_prompts(prompts), chosen, rounds, max_tokens, numbers, seed, asking))
    write_result(folder / f"against_vllm{'_steady' if steady else ''}.json", found)
    Console().print(table(found))


if __name__ == "__main__":
    app()
