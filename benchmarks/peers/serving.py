"""Starts the systems of the comparison, each stopped until it is asked.

Invariant: a way is a system and how to ask it. Ways of one DSD share its processes. Each request to DSD has an API key
of its own, and the caches of prefixes of the others are off: no system finds a prompt that it has had before.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.harness.cell import RunningCell, running, wait_for_fleet
from benchmarks.harness.cell_plan import VERIFIER, CellPlan
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.pinned import move
from benchmarks.harness.requests import connected
from benchmarks.peers import llama_cpp, vllm_server
from benchmarks.peers.cells import MAX_TEXT_TOKENS
from benchmarks.peers.server import Server, serving
from benchmarks.peers.systems import (
    ALL_GIB,
    LLAMA,
    LLAMA_DRAFT,
    TRANSFORMERS,
    TRANSFORMERS_READY_LINE,
    VLLM,
    VLLM_DRAFT,
    VLLM_NGRAM,
    Choice,
    Engine,
    System,
)
from benchmarks.peers.vllm_server import ServerPlan
from client.wire import DsdOptions
from services.gateway.admission.api_keys import new_key
from services.local import nats_server
from services.local.engine import EngineName, VerifierEngine, verifier_engine
from services.local.supervisor import Program

NUM_KEYS = 401  # a key comes again when all caches have long been overwritten
NUM_GUESSES = 4  # of vLLM's own speculation
MAX_SEQS = 16
TRANSFORMERS_READY_S = 120.0
PREFILL_CHUNK = "256"  # as much as fits a pass, as vLLM's own server has it

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """fleet: the DSD that must be complete before it is asked; None: a peer."""

    system: System
    server: Server
    model: str
    keys: Iterator[str]
    speculation: DsdOptions = field(default_factory=DsdOptions)
    fleet: CellPlan | None = None

    async def become_usable(self) -> None:
        """After a stop a gateway may have forgotten its fleet."""
        if self.fleet is not None:
            await wait_for_fleet(self.server.url, self.fleet)


@dataclass(frozen=True, slots=True)
class Starting:
    """What every start needs."""

    models: Path
    vllm: VerifierEngine
    choice: Choice
    folder: Path  # for logs
    notify: Notify

    def fresh(self, name: str) -> Path:
        """An empty folder; the plan may come back to a system."""
        return Path(mkdtemp(prefix=name.replace(" ", "-").replace(",", "") + "-", dir=self.folder))


def starting(models: Path, vllm_python: Path | None, choice: Choice, folder: Path, notify: Notify) -> Starting:
    """Raises EngineRefused if no Python has vLLM."""
    return Starting(models, verifier_engine(EngineName.VLLM, vllm_python), choice, folder, notify)


async def versions(start: Starting) -> dict[str, str]:
    found = {"dtype": start.choice.dtype, "llama.cpp": f"{llama_cpp.PACKAGE} {llama_cpp.VERSION}"}
    found["vLLM"] = (await vllm_server.version_of(start.vllm.python)).removeprefix("vLLM ")
    return found | {name: version(name) for name in ("transformers", "torch", "onnxruntime")}


@asynccontextmanager
async def peers(start: Starting, systems: Sequence[System]) -> AsyncIterator[tuple[dict[str, Way], dict[str, str]]]:
    """The peers among `systems`, one after the other: each compiles or loads with both cores. And why others did not
    start."""
    async with AsyncExitStack() as stack:
        found: dict[str, Way] = {}
        failed: dict[str, str] = {}
        for system in (each for each in systems if each.engine is None):
            try:
                server = await stack.enter_async_context(_peer(start, system))
            except (RuntimeError, TimeoutError, OSError) as error:
                failed[system.name] = f"{system.name}: did not start: {error}"
                start.notify(failed[system.name])
                continue
            found[system.name] = Way(system, server, system.name, itertools.repeat(""))
            start.notify(f"{system.name} is ready")
        yield found, failed


def _peer(start: Starting, system: System) -> AbstractAsyncContextManager[Server]:
    if system.name in (LLAMA, LLAMA_DRAFT):
        return _llama(start, system)
    return _transformers(start, system) if system.name == TRANSFORMERS else _vllm(start, system)


@asynccontextmanager
async def _llama(start: Starting, system: System) -> AsyncIterator[Server]:
    port, template = nats_server.free_port(), start.models / "target" / "chat_template.jinja"
    built = llama_cpp.build(start.notify)
    program = built.program(system.name, port, template, with_draft=system.name == LLAMA_DRAFT)
    async with serving(program, port, llama_cpp.READY_S, start.fresh(system.name), start.notify) as server:
        yield server


@asynccontextmanager
async def _transformers(start: Starting, system: System) -> AsyncIterator[Server]:
    port = nats_server.free_port()
    module = "benchmarks.peers.transformers_server"
    target, dtype = str(start.models / "target"), start.choice.dtype
    argv = (sys.executable, "-m", module, target, "--port", str(port), "--dtype", dtype)
    program = Program(system.name, argv, {"OMP_NUM_THREADS": "2"}, ready_line=TRANSFORMERS_READY_LINE)
    async with serving(program, port, TRANSFORMERS_READY_S, start.fresh(system.name), start.notify) as server:
        yield server


@asynccontextmanager
async def _vllm(start: Starting, system: System) -> AsyncIterator[Server]:
    other, core = sorted(os.sched_getaffinity(0))[:2]
    lengths = ("--max-model-len", str(MAX_TEXT_TOKENS), "--max-num-seqs", str(MAX_SEQS))
    flags = (*lengths, "--dtype", start.choice.dtype, "--no-enable-prefix-caching")
    speculations: dict[str, dict[str, Any]] = {
        VLLM_NGRAM: {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
        VLLM_DRAFT: {"method": "draft_model", "model": str(distilled_model(start.models))},
    }
    speculation = speculations.get(system.name, {})
    if speculation:
        speculation |= {"num_speculative_tokens": NUM_GUESSES}
    cores = (other, core) if system.name == VLLM else (core,)
    plan = ServerPlan(start.vllm.python, start.models / "target", system.name, cores, other, flags, speculation)
    async with vllm_server.running(plan, start.fresh(system.name), start.notify) as server:
        yield server


def distilled_model(models: Path) -> Path:
    """The trained draft before its export, in the form that vLLM reads."""
    return models / "draft-distilled-work" / "model"


def has_distilled(models: Path) -> bool:
    return distilled_model(models).is_dir() and (models / "draft-distilled").is_dir()


def has_room() -> bool:
    """Whether this machine's memory holds all systems, which stay loaded while others answer."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 >= ALL_GIB


@asynccontextmanager
async def ours(
    start: Starting, systems: Sequence[System], rtt_ms: int
) -> AsyncIterator[tuple[dict[str, Way], list[RunningCell]]]:
    """The DSDs among `systems`: one for each engine, with a drafter for each draft at this distance."""
    async with AsyncExitStack() as stack:
        found: dict[str, Way] = {}
        cells: list[RunningCell] = []
        engines: list[Engine] = ["torch", "vllm"]
        for engine in engines:
            mine = [system for system in systems if system.engine == engine]
            if mine:
                ways, cell = await stack.enter_async_context(_dsd(start, engine, mine, rtt_ms))
                found |= ways
                cells.append(cell)
                start.notify(f"DSD on {engine} at {rtt_ms} ms is ready")
        yield found, cells


@asynccontextmanager
async def _dsd(
    start: Starting, engine: Engine, systems: Sequence[System], rtt_ms: int
) -> AsyncIterator[tuple[dict[str, Way], RunningCell]]:
    plan = dsd_plan(start, engine, [each.draft for each in systems if each.draft], rtt_ms)
    async with running(plan, start.fresh(f"DSD-{engine}-{rtt_ms}"), start.notify) as cell:
        async with connected(cell.url, plan.api_keys[0]) as gateway:
            model = await gateway.first_model()
        if plan.is_pinned:
            for pid in (pid for name, pid in cell.pids().items() if name != VERIFIER):
                move(pid, min(os.sched_getaffinity(0)))
        server = Server(cell.url, lambda: list(cell.pids().values()))
        keys = itertools.cycle(plan.api_keys[1:])
        ways = {
            system.name: Way(system, server, model, keys, speculation_of(system, plan.drafts), plan)
            for system in systems
        }
        server.stop()
        try:
            yield ways, cell
        finally:
            server.resume()


def dsd_plan(start: Starting, engine: Engine, drafts: Sequence[str], rtt_ms: int) -> CellPlan:
    env = {"DSD_DTYPE": start.choice.dtype, "DSD_MAX_SESSIONS": "64"}  # those of a warm-up may end late
    env |= {"DSD_PAIR_EXPIRY_S": "86400"}  # a stop is no reason to forget a pair: traffic would have gone on
    if engine == "vllm":
        env |= {
            "DSD_VLLM_ARGS": f"--max-model-len {MAX_TEXT_TOKENS}",
            "VLLM_CPU_KVCACHE_SPACE": vllm_server.KV_GIB,
            "DSD_PREFILL_CHUNK": PREFILL_CHUNK,
        }
    is_split = engine == "torch" or rtt_ms > 0
    return CellPlan(
        start.models,
        link=LinkConditions.of_round_trip(rtt_ms),
        is_pinned=is_split,
        verifier_threads=1 if is_split else 2,
        prefill_threads=2 if is_split and engine == "vllm" else 0,
        env=env,
        api_keys=tuple(new_key() for _ in range(NUM_KEYS)),
        drafts=tuple(drafts),
        engine=start.vllm if engine == "vllm" else VerifierEngine(),
    )


def speculation_of(system: System, drafts: Sequence[str]) -> DsdOptions:
    """How a request chooses the way: without speculation, or with the drafter that has the draft."""
    if system.draft is None:
        return DsdOptions(speculation="off")
    return DsdOptions(speculation="adaptive", drafter=f"drafter-{drafts.index(system.draft)}")
