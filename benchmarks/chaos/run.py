"""A whole chaos run: undisturbed answers, faults under load, the restart of every service in turn, and what is left."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaos import judging, leftovers, pauses
from benchmarks.chaos.clients import Clients
from benchmarks.chaos.faults import SIGNALS, FaultPlan, Injector, not_runnable, restart
from benchmarks.chaos.questions import KEYS, TIMES_ASKED, Asking, Lengths, asked, make_questions, undisturbed
from benchmarks.chaos.records import ChaosResult, Fault, RequestRecord, RollingFigures
from benchmarks.chaos.system import SERVICES, ChaosPlan, ChaosSystem, running
from benchmarks.harness.cell import write_api_keys
from benchmarks.harness.latency import OK
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import load_tokenizer
from shared.runtime.home import DEFAULT_MODEL

DRAIN_S = 300.0  # answers are slow while verifiers start again
ERROR = "(see "  # in what the supervisor tells of an error in a log


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked. has_rolling: every service restarts in turn at the end."""

    num_requests: int = 1000
    num_clients: int = 10
    seed: int = 1
    lengths: Lengths = field(default_factory=Lengths)
    faults: FaultPlan = field(default_factory=FaultPlan)
    has_rolling: bool = True


@dataclass(slots=True)
class Run:
    """One run in progress."""

    system: ChaosSystem
    load: Load
    tell: Callable[[str], None]
    started_at: float

    def now(self) -> float:
        return time.monotonic() - self.started_at

    async def ask(self, askings: Iterator[Asking] | Sequence[Asking], number: int) -> list[RequestRecord]:
        records: list[RequestRecord] = []
        clients = Clients(self.system.gateways, DEFAULT_MODEL, self.now, self.load.seed, records)
        await clients.ask_all(askings, self.load.num_clients, lambda: self._progress(records, number))
        return records

    async def ask_under_faults(
        self, askings: Sequence[Asking], plan: FaultPlan
    ) -> tuple[list[RequestRecord], list[Fault]]:
        injector = Injector(self.system, plan, self.now, self.tell)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            injecting = tasks.create_task(injector.run(over), name="faults")
            records = await self.ask(askings, len(askings))
            over.set()
            await injecting
        return records, injector.faults

    async def ask_while_rolling(self, askings: Sequence[Asking]) -> tuple[list[RequestRecord], list[Fault]]:
        """Each process gets SIGTERM in turn. The next one follows when its successor is ready."""
        over = asyncio.Event()
        restarts: list[Fault] = []
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(
                self.ask(itertools.takewhile(lambda _: not over.is_set(), itertools.cycle(askings)), 0)
            )
            for name in (name for service in SERVICES for name in self.system.names(service)):
                fault = Fault(f"term-{name.partition('-')[0]}", name, self.now())
                restarts.append(fault)
                self.tell(f"{fault.begun_s:.1f} s: {name} gets SIGTERM")
                await restart(self.system, name, signal.SIGTERM)
                await self.system.whole()
                fault.ended_s = self.now()
            over.set()
            records = await asking
        return records, restarts

    def _progress(self, records: Sequence[RequestRecord], number: int) -> None:
        if number and len(records) % max(1, number // 10) == 0:
            self.tell(f"{self.now():.0f} s: {len(records)} of {number} requests")


async def run(
    plan: ChaosPlan, load: Load, tell: Callable[[str], None], logs: Path | None = None
) -> tuple[ChaosResult, list[RequestRecord]]:
    """Raises TimeoutError if the system does not start, RuntimeError if an undisturbed answer fails. logs: a folder
    that does not exist, for a copy of all logs."""
    tokenizer = load_tokenizer(plan.models / "target")
    num_questions = math.ceil(load.num_requests / TIMES_ASKED)
    questions = make_questions(tokenizer, read_prompts(DEFAULT_PROMPTS), num_questions, load.seed, load.lengths)
    askings = asked(questions, load.num_requests, load.seed)
    with TemporaryDirectory(prefix="dsd-chaos-") as folder:
        keys = {"DSD_API_KEYS_FILE": str(write_api_keys(Path(folder), KEYS))}
        plan = replace(plan, env={"DSD_DRAIN_S": f"{DRAIN_S:g}", **plan.env, **keys})
        async with running(plan, Path(folder), tell) as system:
            try:
                return await _measured(Run(system, load, tell, time.monotonic()), plan, undisturbed(questions), askings)
            finally:
                if logs is not None:
                    shutil.copytree(Path(folder) / "logs", logs)


async def _measured(
    run: Run, plan: ChaosPlan, calm_askings: Sequence[Asking], askings: Sequence[Asking]
) -> tuple[ChaosResult, list[RequestRecord]]:
    system, load = run.system, run.load
    run.tell(f"{len(calm_askings)} requests without faults")
    calm = await run.ask(calm_askings, len(calm_askings))
    expected = {record.question: record.answer for record in calm}
    if failed := [record.number for record in calm if record.answer.status != OK]:
        raise RuntimeError(f"without faults no answer came to requests {failed}")
    before = await leftovers.idle_holdings(system)
    not_run = not_runnable(system, plan.fake_clock is not None)
    fault_plan = replace(load.faults, kinds=[kind for kind in load.faults.kinds if kind not in not_run])
    run.tell(f"{len(askings)} requests under faults, seed {fault_plan.seed}: {', '.join(fault_plan.kinds)}")
    begun_s = run.now()
    records, faults = await run.ask_under_faults(askings, fault_plan)
    duration_s = run.now() - begun_s
    await system.whole()
    rolled, restarts = await run.ask_while_rolling(askings) if load.has_rolling else ([], [])
    left = await leftovers.settled(system, before)

    usual_s = pauses.longest_gap_s(expected.values())
    texts, differences = judging.compare([*records, *rolled], expected)
    failed_by, retried, unexcused = judging.failures(records, faults)
    moves, late = pauses.by_move(records, faults, usual_s)
    causes, too_long = pauses.by_cause(faults, pauses.pauses(records, usual_s), pauses.moves_of(records), usual_s)
    rolling, rolling_complaints = rolling_figures(rolled, restarts) if rolled else (None, [])
    attempts = [attempt for record in records for attempt in record.attempts]
    result = ChaosResult(
        origin=Origin.here("benchmarks.chaos"),
        engine=str(plan.engine.name),
        seed=load.seed,
        duration_s=duration_s,
        texts=texts,
        statuses=dict(Counter(attempt.status for attempt in attempts)),
        failed=failed_by,
        retried=retried,
        undisturbed_pause_s=usual_s,
        undisturbed_ttft_s=max(pauses.first_piece_s(attempt) for attempt in expected.values()),
        causes=causes,
        moves=moves,
        faults=faults,
        not_run={kind: reason for kind, reason in not_run.items() if kind in load.faults.kinds},
        leftovers=left,
        rolling=rolling,
        violations=[
            *differences,
            *unexcused,
            *late,
            *too_long,
            *rolling_complaints,
            *leftovers.complaints(left),
            *unexpected_ends(system, [*faults, *restarts]),
            *(notice for notice in system.notices if ERROR in notice),
        ],
    )
    return result, records


def rolling_figures(records: Sequence[RequestRecord], restarts: Sequence[Fault]) -> tuple[RollingFigures, list[str]]:
    failed, _, unexcused = judging.failures(records, ())
    longest_s = pauses.longest_gap_s(attempt for record in records for attempt in record.attempts)
    return RollingFigures(len(restarts), len(records), failed, longest_s), [f"rolling: {each}" for each in unexcused]


def unexpected_ends(system: ChaosSystem, faults: Sequence[Fault]) -> list[str]:
    """Processes that ended more often than a fault ended them."""
    ended: Mapping[str, int] = Counter(fault.target for fault in faults if fault.kind.partition("-")[0] in SIGNALS)
    surplus = {name: child.num_starts - 1 - ended[name] for name, child in system.children.items()}
    return [f"{name} ended {number} times by itself" for name, number in surplus.items() if number > 0]
