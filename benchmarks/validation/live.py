"""A running system of the validation, which gets requests phase by phase.

Invariant: a phase starts only when all answers of the previous one are complete, so each pass, step and verdict belongs
to one phase. The window policy of a phase starts without state.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.cell import RunningCell, running
from benchmarks.harness.cell_plan import DRAFTER, GATEWAY, VERIFIER, WITHOUT_CONTROLLER, CellPlan, StandinPlan
from benchmarks.harness.files import write_result
from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.requests import connected
from benchmarks.harness.scripted_controller import scripted_controller
from benchmarks.harness.standin import OVERRUN
from benchmarks.load import processor_time
from benchmarks.load.arrivals import poisson_times
from benchmarks.load.processor_time import foreign_share, is_void
from benchmarks.standins.compute_log import ComputeRecord, read_compute_log
from benchmarks.validation.bus_monitor import BusMonitor, BusObservations, counts_when_idle, monitoring
from benchmarks.validation.cases import (
    REPLAYED_TIMES,
    Case,
    Outage,
    RequestLoad,
    ValidationSystem,
)
from benchmarks.validation.prompts import write_extended
from benchmarks.validation.requests import CaseRequest, RequestSender, requests_of, send_at, send_in_turn
from services.gateway.admission.api_keys import new_key
from services.local.engine import EngineName, VerifierEngine
from shared.runtime.home import default_models_dir
from shared.runtime.machine import fast_dtype
from shared.timing import REPORT_S

STANDIN_TOKENS = 128  # most of an answer
WARM_UP = RequestLoad(2, 1, lengths=(16,))
LAST_REPORT_S = 2 * REPORT_S  # after the end of a session: by then a report tells of all its guesses
VLLM_ENV = {"DSD_VLLM_ARGS": "--max-model-len 2048", "DSD_DTYPE": fast_dtype(), "VLLM_CPU_KVCACHE_SPACE": "1"}


class PhaseFailed(RuntimeError):
    """Requests failed, so there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What was measured between two times of time.monotonic. Samples are in the order of the requests."""

    begin_s: float
    end_s: float
    samples: list[RequestSample]
    drafters: list[str | None]  # process name of each request's drafter
    observed: BusObservations
    acceptance_length: float
    passes: list[list[ComputeRecord]]  # of each verifier
    steps: list[list[ComputeRecord]]  # of each drafter
    complaints: list[str]

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class LiveSystem:
    """A system, its relay's file of conditions, and the keys that are left."""

    system: ValidationSystem
    plan: CellPlan
    cell: RunningCell
    sender: RequestSender
    monitor: BusMonitor

    async def run(self, case: Case, prompts: Sequence[str], seed: int) -> Phase:
        """The requests of a case, after a warm-up with the default window."""
        load = case.load
        drafters = self._drafters(case.draft)
        assert self.plan.conditions is not None
        write_result(self.plan.conditions, case.link)
        os.kill(self.cell.pids()["relay"], signal.SIGHUP)
        async with scripted_controller(self.cell.nats_url, len(self.system.drafts), self.system.num_verifiers) as each:
            await self._send(WARM_UP, requests_of(prompts, WARM_UP, list(drafters.values()), seed), seed, None)
            if case.draft is not None:
                await each.choose(case.control)
            requests = requests_of(prompts, load, list(drafters.values()), seed)
            await asyncio.sleep(LAST_REPORT_S)
            self.cell.begin()
            before = await counts_when_idle(self.sender.url)
            self.monitor.begin()
            groups = set(self.cell.pids().values())
            before_s = processor_time.read(groups)
            begin_s = time.monotonic()
            samples = await self._send(load, requests, seed, case.outage)
            after = await counts_when_idle(self.sender.url)
            end_s = time.monotonic()
            share = foreign_share(before_s, processor_time.read(groups))
            await asyncio.sleep(LAST_REPORT_S)
        passes, steps = self._compute(begin_s, end_s)
        names = {instance: process for process, instance in drafters.items()}
        return Phase(
            begin_s=begin_s,
            end_s=end_s,
            samples=samples,
            drafters=[names[each.drafter] if each.drafter else None for each in requests],
            observed=self.monitor.observed(),
            acceptance_length=after.acceptance_length_since(before),
            passes=passes,
            steps=steps,
            complaints=[
                *self._complaints(samples, requests),
                *([f"something else used {share:.1%} of a core"] if is_void(share, end_s - begin_s) else []),
            ],
        )

    def _drafters(self, draft: str | None) -> dict[str, str]:
        """Instance names of the drafters with this draft, by process name."""
        names = zip(self.plan.processes(DRAFTER), self.plan.drafter_names, self.system.drafts, strict=True)
        return {process: instance for process, instance, each in names if each == draft}

    async def _send(
        self,
        load: RequestLoad,
        requests: Sequence[CaseRequest],
        seed: int,
        outage: Outage | None,
    ) -> list[RequestSample]:
        started_at = time.monotonic()
        answers: Awaitable[list[RequestSample]]
        if load.num_clients:
            answers = send_in_turn(self.sender, requests, load.num_clients, started_at)
        else:
            answers = send_at(self.sender, requests, poisson_times(load.rate_per_s, len(requests), seed), started_at)
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(self._fail_link(outage)) if outage is not None else None
            samples = await answers
            if failing is not None:
                failing.cancel()
        failed = [sample.status for sample in samples if sample.status != OK]
        if failed:
            raise PhaseFailed(f"{len(failed)} of {len(samples)} requests failed: {', '.join(sorted(set(failed)))}")
        return samples

    async def _fail_link(self, outage: Outage) -> None:
        """Stops the relay."""
        relay, started = self.cell.pids()["relay"], time.monotonic()
        for start_s in outage.starts_s:
            await asyncio.sleep(started + start_s - time.monotonic())
            os.kill(relay, signal.SIGSTOP)
            try:
                await asyncio.sleep(outage.for_s)
            finally:
                os.kill(relay, signal.SIGCONT)

    def _compute(self, begin_s: float, end_s: float) -> tuple[list[list[ComputeRecord]], list[list[ComputeRecord]]]:
        """The passes of each verifier and the steps of each drafter in this time."""
        folder = self.plan.compute_logs
        assert folder is not None

        def logs(kind: str) -> list[list[ComputeRecord]]:
            found = [read_compute_log(folder / f"{name}.jsonl") for name in self.plan.processes(kind)]
            return [[each for each in log if begin_s <= each.start_s and each.end_s <= end_s] for log in found]

        return logs(VERIFIER), logs(DRAFTER)

    def _complaints(self, samples: Sequence[RequestSample], requests: Sequence[CaseRequest]) -> Iterator[str]:
        yield from (each for each in self.cell.complaints() if OVERRUN not in each)  # the logs hold actual times
        for sample, request in zip(samples, requests, strict=True):
            if sample.num_tokens != request.max_tokens:
                yield f"an answer has {sample.num_tokens} tokens, expected {request.max_tokens}"


@asynccontextmanager
async def started(
    system: ValidationSystem, python: Path | None, num_requests: int, folder: Path, notify: Callable[[str], None]
) -> AsyncIterator[LiveSystem]:
    """Runs the services of a system. Each request has an API key of its own. python: of verifiers on vLLM."""
    keys = [new_key() for _ in range(num_requests + 1)]
    plan = plan_of(system, python, folder, keys)
    async with running(plan, folder, notify) as cell, monitoring(cell.nats_url) as monitor:
        async with connected(cell.url, keys[0]) as gateway:
            model = await gateway.first_model()
        yield LiveSystem(system, plan, cell, RequestSender(cell.url, model, iter(keys[1:])), monitor)


def num_keys(loads: Sequence[RequestLoad]) -> int:
    """Requests of phases with these loads."""
    return sum(load.num_requests + WARM_UP.num_requests for load in loads)


def plan_of(system: ValidationSystem, python: Path | None, folder: Path, keys: Sequence[str]) -> CellPlan:
    """The processes of a system. Writes the stand-ins' profile into `folder`."""
    folder.joinpath("compute").mkdir()
    is_vllm = system.engine is EngineName.VLLM
    return CellPlan(
        default_models_dir(),
        names=WITHOUT_CONTROLLER if system.drafts else (VERIFIER, GATEWAY),
        is_pinned=not system.is_replayed,
        standin=_standin(system, folder) if system.is_replayed else None,
        env=VLLM_ENV if is_vllm else {},
        api_keys=tuple(keys),
        drafts=system.drafts,
        num_verifiers=system.num_verifiers,
        compute_logs=folder / "compute",
        conditions=folder / "link.json",
        engine=VerifierEngine(system.engine, python) if is_vllm and python else VerifierEngine(),
    )


def _standin(system: ValidationSystem, folder: Path) -> StandinPlan:
    profile = folder / "profile.json"
    profile.write_text(REPLAYED_TIMES.model_dump_json(), encoding="utf-8")
    write_extended(system.drafts[0], folder / "recording.jsonl", STANDIN_TOKENS)
    return StandinPlan("replayed", profile, folder / "recording.jsonl")
