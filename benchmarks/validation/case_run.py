"""Runs one case: starts its services, calibrates, sends the judged requests, then simulates them.

Invariant: the calibration is measured in the same running system, before and after the judged requests, with other
prompts. A phase starts only when all answers of the previous one are complete, so each pass and each verdict belongs to
one phase.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from awc.policy import WindowChoice
from benchmarks.harness.cell import running
from benchmarks.harness.cell_plan import DRAFTER, GATEWAY, VERIFIER, WITHOUT_CONTROLLER, CellPlan, StandinPlan
from benchmarks.harness.latency import OK, LatencyObjective, RequestSample, summarise
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.origin import Origin
from benchmarks.harness.requests import connected
from benchmarks.harness.scripted_controller import ScriptedController, scripted_controller
from benchmarks.harness.standin import OVERRUN
from benchmarks.load.arrivals import poisson_times
from benchmarks.standins.timed import read_compute_log
from benchmarks.validation.bus_monitor import BusMonitor, BusObservations, counts_when_idle, monitoring
from benchmarks.validation.calibration import Calibration, ComputeLogs, KnownTimes, TimingDrift, calibrate, drift_of
from benchmarks.validation.cases import INT8, NUM_TOKENS, PACED, REPLAYED, Case, sliding
from benchmarks.validation.record import DraftRecordings
from benchmarks.validation.requests import (
    CaseRequest,
    Phase,
    RequestSender,
    requests_at_random,
    requests_of_clients,
    send_at,
    send_in_turn,
)
from benchmarks.validation.scenario import CaseFigures, scenario_of, simulate
from services.gateway.admission.api_keys import new_key
from shared.data.profiles import Profile
from shared.protocol.messages import MAX_WINDOW

NUM_ALONE, ALONE_TOKENS = 8, 8  # answers one after another, and their length
BUSY_ANSWERS, BUSY_TOKENS = 2, 32  # answers of each client, and their length
MIN_BUSY = 4  # answers
WARM_UP_TOKENS = 16
UNLIMITED = sliding(MAX_WINDOW)  # no drafter waits for a verdict
BEFORE, JUDGED, AFTER = 1, 2, 3  # seeds of arrivals


class CaseFailed(RuntimeError):
    """Requests failed, so there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class ValidationInputs:
    """Inputs that all cases have in common."""

    models: Path
    recordings: DraftRecordings
    judged: Sequence[str]  # prompts
    others: Sequence[str]  # prompts
    code: str  # origin.digest_of
    num_tokens: int = NUM_TOKENS


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result file of a case."""

    case: Case
    num_tokens: int
    code: str  # ValidationInputs.code
    live: CaseFigures
    simulated: CaseFigures
    calibration: Calibration
    drift: TimingDrift
    took_s: float  # of the judged requests
    complaints: list[str]  # why the figures are void; empty: they count
    origin: Origin


def plan_of(case: Case, inputs: ValidationInputs, folder: Path, keys: Sequence[str]) -> CellPlan:
    """The processes of a case. Writes the stand-ins' profile into `folder`."""
    folder.joinpath("compute").mkdir()
    return CellPlan(
        inputs.models,
        names=WITHOUT_CONTROLLER if case.drafts else (VERIFIER, GATEWAY),
        link=LinkConditions.of_round_trip(case.rtt_ms),
        is_pinned=case.models != "replayed",
        standin=_standin(case, inputs.recordings, folder),
        api_keys=tuple(keys),
        drafts=case.drafts or (INT8,),  # a pair has a draft, even if no drafter runs
        num_verifiers=case.num_verifiers,
        compute_logs=folder / "compute",
    )


def _standin(case: Case, recordings: DraftRecordings, folder: Path) -> StandinPlan | None:
    if case.models == "real":
        return None
    profile = folder / "profile.json"
    if case.models == "paced":
        profile.write_text(PACED.model_dump_json(), encoding="utf-8")
        return StandinPlan("paced", profile, names=(DRAFTER,))
    profile.write_text(REPLAYED.model_dump_json(), encoding="utf-8")
    return StandinPlan("replayed", profile, recordings.all(case.drafts[0]))


def known_times(case: Case) -> KnownTimes:
    """The profile times of its stand-ins."""
    profiles: dict[str, Profile] = {"paced": PACED, "replayed": REPLAYED}
    profile = profiles.get(case.models)
    return KnownTimes(profile.verifier, profile.drafter) if profile else KnownTimes()


def num_keys(case: Case) -> int:
    """One API key for each request, and one for queries about the gateway."""
    return 1 + case.num_at_once + NUM_ALONE + _num_busy(case) + 2 * case.num_calibrating + case.num_requests


def _num_busy(case: Case) -> int:
    return max(MIN_BUSY, BUSY_ANSWERS * case.num_at_once)


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """Requests of a phase, and what was observed in it."""

    requests: list[CaseRequest]
    phase: Phase
    observed: BusObservations
    acceptance_length: float

    @property
    def figures(self) -> CaseFigures:
        summary = summarise(self.phase.samples, LatencyObjective())
        if summary.ttft_ms is None or summary.tpot_ms is None or self.observed.queue is None:
            raise CaseFailed("no answer is long enough to measure")
        return CaseFigures(
            tokens_per_s=summary.tokens_per_s,
            ttft_ms=summary.ttft_ms.mean,
            tpot_ms=summary.tpot_ms.mean,
            acceptance_length=self.acceptance_length,
            queue=self.observed.queue,
            acceptance=summary.acceptance,
        )


@dataclass(frozen=True, slots=True)
class LiveSystem:
    """A running system that gets requests phase by phase."""

    case: Case
    inputs: ValidationInputs
    drafters: Sequence[str]  # instance names
    sender: RequestSender
    controller: ScriptedController
    monitor: BusMonitor

    async def clients(
        self, prompts: Sequence[str], num: int, num_clients: int, max_tokens: int, choice: WindowChoice | None
    ) -> PhaseResult:
        """`num` answers in a closed loop. Without a choice: target-only."""
        drafters = self.drafters if choice is not None else ()
        requests = requests_of_clients(prompts, num, num_clients, drafters, max_tokens)
        return await self._phase(
            requests, choice, lambda start: send_in_turn(self.sender, requests, num_clients, start)
        )

    async def load(self, prompts: Sequence[str], num: int, seed: int) -> PhaseResult:
        """`num` requests under the load of the case."""
        case, max_tokens = self.case, self.inputs.num_tokens
        choice = case.choice if case.drafts else None
        if case.num_clients:
            return await self.clients(prompts, num, case.num_clients, max_tokens, choice)
        requests = requests_at_random(prompts, num, self.drafters, max_tokens, seed)
        times_s = poisson_times(case.rate_per_s, num, seed)
        return await self._phase(requests, choice, lambda start: send_at(self.sender, requests, times_s, start))

    async def _phase(
        self,
        requests: list[CaseRequest],
        choice: WindowChoice | None,
        send: Callable[[float], Awaitable[list[RequestSample]]],
    ) -> PhaseResult:
        if choice is not None:
            await self.controller.choose(choice)
        before = await counts_when_idle(self.sender.url)
        self.monitor.begin()
        started_at = time.monotonic()
        samples = await send(started_at)
        failed = [sample.status for sample in samples if sample.status != OK]
        if failed:
            raise CaseFailed(f"{len(failed)} of {len(samples)} requests failed: {', '.join(sorted(set(failed)))}")
        after = await counts_when_idle(self.sender.url)
        phase = Phase(started_at, time.monotonic(), samples)
        return PhaseResult(requests, phase, self.monitor.observed(), after.acceptance_length_since(before))


@dataclass(frozen=True, slots=True)
class LiveResult:
    """The judged run, and its calibration."""

    judged: PhaseResult
    calibration: Calibration
    drift: TimingDrift
    complaints: list[str]


async def measure(case: Case, inputs: ValidationInputs, folder: Path, notify: Callable[[str], None]) -> LiveResult:
    """Runs the services of a case. Raises as run_case does."""
    keys = [new_key() for _ in range(num_keys(case))]
    plan = plan_of(case, inputs, folder, keys)
    async with (
        running(plan, folder, notify) as cell,
        scripted_controller(cell.nats_url, len(case.drafts), case.num_verifiers) as controller,
        monitoring(cell.nats_url) as monitor,
    ):
        async with connected(cell.url, keys[0]) as gateway:
            model = await gateway.first_model()
        sender = RequestSender(cell.url, model, iter(keys[1:]))
        live = LiveSystem(case, inputs, plan.drafter_names, sender, controller, monitor)
        num, choice = case.num_at_once, case.choice if case.drafts else None
        await live.clients(inputs.others, num, num, WARM_UP_TOKENS, choice)
        cell.begin()
        alone = await live.clients(inputs.others, NUM_ALONE, 1, ALONE_TOKENS, None)
        busy = await live.clients(inputs.others, _num_busy(case), num, BUSY_TOKENS, UNLIMITED if case.drafts else None)
        # Before and after, so that a drift of the machine cancels out.
        num, others = case.num_calibrating, inputs.others
        notify(f"{case.name}: {num} calibration requests, as many follow the judged ones")
        before = await live.load(others, num, BEFORE)
        notify(f"{case.name}: {case.num_requests} judged requests")
        judged = await live.load(inputs.judged, case.num_requests, JUDGED)
        after = await live.load([*others[num:], *others[:num]], num, AFTER)
        complaints = [each for each in cell.complaints() if OVERRUN not in each]  # the logs hold actual times
        logs = read_compute_logs(plan)
    complaints += complaints_about(judged, inputs.num_tokens)
    rtts_ms = [each.observed.rtt_ms for each in (before, after) if each.observed.rtt_ms is not None]
    rtt_ms, load = fmean(rtts_ms) if rtts_ms else None, [before.phase, after.phase]
    calibration = calibrate(logs, known_times(case), alone.phase, busy.phase, load, rtt_ms)
    drift = drift_of(calibration, logs.within(judged.phase), judged.observed.rtt_ms)
    return LiveResult(judged, calibration, drift, complaints)


def read_compute_logs(plan: CellPlan) -> ComputeLogs:
    """The logs of all verifiers and drafters of a plan."""
    folder = plan.compute_logs
    assert folder is not None
    passes, steps = (
        [read_compute_log(folder / f"{name}.jsonl") for name in plan.processes(kind)] for kind in (VERIFIER, DRAFTER)
    )
    return ComputeLogs(passes, steps)


def complaints_about(judged: PhaseResult, num_tokens: int) -> list[str]:
    """Answers of an unexpected length."""
    lengths = {sample.num_tokens for sample in judged.phase.samples} - {num_tokens}
    return [f"answers have {', '.join(map(str, sorted(lengths)))} tokens, expected {num_tokens}"] if lengths else []


def run_case(case: Case, inputs: ValidationInputs, origin: Origin, notify: Callable[[str], None]) -> CaseResult:
    """Runs a case live, then simulates it. Raises CaseFailed, NotCalibrated or TimeoutError."""
    with TemporaryDirectory(prefix="dsd-validate-") as name:
        folder = Path(name)
        live = asyncio.run(measure(case, inputs, folder, notify))
        judged, calibration = live.judged, live.calibration
        scenario = scenario_of(case, calibration, inputs.recordings, judged.requests, judged.phase.samples, folder)
        simulated = simulate(scenario, folder, calibration.request_ms)
    return CaseResult(
        case=case,
        num_tokens=inputs.num_tokens,
        code=inputs.code,
        live=judged.figures,
        simulated=simulated,
        calibration=calibration,
        drift=live.drift,
        took_s=judged.phase.end_s - judged.phase.begin_s,
        complaints=live.complaints,
        origin=origin,
    )
