"""One case: its services run for real, are calibrated with other prompts, are judged, and then are simulated.

Invariant: what the simulator is told was measured in the same running system, before and behind the judged requests,
with other prompts. No phase begins before all answers of the one before are complete, so that each pass and each
verdict belongs to one phase.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import msgspec

from awc.policy import WindowChoice
from benchmarks.harness import cell as cells
from benchmarks.harness.asking import connected
from benchmarks.harness.cell_plan import DRAFTER, GATEWAY, VERIFIER, CellPlan, Standin
from benchmarks.harness.conductor import Conductor, conducting
from benchmarks.harness.latency import OK, Objective, Sample, summarise
from benchmarks.harness.link import Conditions
from benchmarks.harness.origin import Origin
from benchmarks.load.arrivals import poisson_times
from benchmarks.policies.measure import NAMES, write_keys
from benchmarks.standins.paced import OVERRUN
from benchmarks.validation.bus_watch import Heard, Watch, served, watching
from benchmarks.validation.calibration import Calibration, Clocks, Drift, Known, calibrate, drift_of
from benchmarks.validation.cases import NUM_TOKENS, PACED, REPLAYED, Case, sliding
from benchmarks.validation.clock import read_notes
from benchmarks.validation.load import (
    Asker,
    Phase,
    Request,
    ask_at,
    ask_in_turn,
    requests_at_random,
    requests_of_clients,
)
from benchmarks.validation.record import Recordings
from benchmarks.validation.scenario import Figures, scenario_of, simulate
from services.gateway.admission.api_keys import new_key
from shared.data.profiles import Profile
from shared.protocol.messages import MAX_WINDOW

NUM_ALONE, ALONE_TOKENS = 8, 8  # answers one after the other, and their lengths
BUSY_ANSWERS, BUSY_TOKENS = 2, 32  # of each client
MIN_BUSY = 4  # answers
WARM_UP_TOKENS = 16
AHEAD = sliding(MAX_WINDOW)  # nobody waits for anybody
BEFORE, JUDGED, BEHIND = 1, 2, 3  # seeds of arrivals


class CaseFailed(RuntimeError):
    """Requests came to nothing, so that there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What all cases have in common."""

    models: Path
    recordings: Recordings
    judged: Sequence[str]  # prompts
    others: Sequence[str]
    code: str
    num_tokens: int = NUM_TOKENS


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What is kept of a case. `complaints`: why its figures are void, empty where they are not."""

    case: Case
    num_tokens: int
    code: str  # which simulator, services and models (origin.digest_of)
    live: Figures
    simulated: Figures
    calibration: Calibration
    drift: Drift
    took_s: float  # the judged requests
    complaints: list[str]
    origin: Origin


def read_result(path: Path) -> CaseResult:
    """Raises ValueError naming the file for one that is no result."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CaseResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no result of a case: {error}") from error


class _Made(msgspec.Struct):
    code: str


def code_of(path: Path) -> str:
    """Of which code a result is. Raises ValueError naming the file for one that is no result."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Made).code
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no result of a case: {error}") from error


def plan_of(case: Case, effort: Effort, folder: Path, keys: Sequence[str]) -> CellPlan:
    """What runs. Writes the stand-ins' profile and the keys into `folder`."""
    folder.joinpath("clocks").mkdir()
    return CellPlan(
        effort.models,
        names=NAMES if case.drafts else (VERIFIER, GATEWAY),
        link=Conditions.of_round_trip(case.rtt_ms),
        is_pinned=case.models != "replayed",
        standin=_standin(case, effort.recordings, folder),
        env={"DSD_API_KEYS_FILE": str(write_keys(folder, keys))},
        api_key=keys[0],
        drafts=case.drafts,
        num_verifiers=case.num_verifiers,
        clocks=folder / "clocks",
    )


def _standin(case: Case, recordings: Recordings, folder: Path) -> Standin | None:
    if case.models == "real":
        return None
    profile = folder / "profile.json"
    if case.models == "paced":
        profile.write_text(PACED.model_dump_json(), encoding="utf-8")
        return Standin("paced", profile, names=(DRAFTER,))
    profile.write_text(REPLAYED.model_dump_json(), encoding="utf-8")
    return Standin("replayed", profile, recordings.all(case.drafts[0]))


def known_times(case: Case) -> Known:
    """Of its stand-ins."""
    profiles: dict[str, Profile] = {"paced": PACED, "replayed": REPLAYED}
    profile = profiles.get(case.models)
    return Known(profile.verifier, profile.drafter) if profile else Known()


def num_keys(case: Case) -> int:
    """One for each request, and one to ask the gateway about itself."""
    return 1 + case.num_at_once + NUM_ALONE + _num_busy(case) + 2 * case.num_calibrating + case.num_requests


def _num_busy(case: Case) -> int:
    return max(MIN_BUSY, BUSY_ANSWERS * case.num_at_once)


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests that were made, in a phase, and what services told of it."""

    requests: list[Request]
    phase: Phase
    heard: Heard
    acceptance_length: float

    @property
    def figures(self) -> Figures:
        summary = summarise(self.phase.samples, Objective())
        if summary.ttft_ms is None or summary.tpot_ms is None or self.heard.queue is None:
            raise CaseFailed("no answer was long enough to be measured")
        return Figures(
            tokens_per_s=summary.tokens_per_s,
            ttft_ms=summary.ttft_ms.mean,
            tpot_ms=summary.tpot_ms.mean,
            acceptance_length=self.acceptance_length,
            queue=self.heard.queue,
            acceptance=summary.acceptance,
        )


@dataclass(frozen=True, slots=True)
class LiveCase:
    """A running system that is asked, phase by phase."""

    case: Case
    effort: Effort
    drafters: Sequence[str]  # by which requests ask for them
    asker: Asker
    conductor: Conductor
    watch: Watch

    async def clients(
        self, prompts: Sequence[str], num: int, num_clients: int, max_tokens: int, choice: WindowChoice | None
    ) -> Asked:
        """So many answers to clients that ask all the time. No choice: target-only."""
        drafters = self.drafters if choice is not None else ()
        requests = requests_of_clients(prompts, num, num_clients, drafters, max_tokens)
        return await self._ask(
            requests, choice, lambda beginning: ask_in_turn(self.asker, requests, num_clients, beginning)
        )

    async def load(self, prompts: Sequence[str], num: int, seed: int) -> Asked:
        """The load of the case."""
        case, max_tokens = self.case, self.effort.num_tokens
        choice = case.choice if case.drafts else None
        if case.num_clients:
            return await self.clients(prompts, num, case.num_clients, max_tokens, choice)
        requests = requests_at_random(prompts, num, self.drafters, max_tokens, seed)
        times_s = poisson_times(case.rate_per_s, num, seed)
        return await self._ask(requests, choice, lambda beginning: ask_at(self.asker, requests, times_s, beginning))

    async def _ask(
        self,
        requests: list[Request],
        choice: WindowChoice | None,
        ask: Callable[[float], Awaitable[list[Sample]]],
    ) -> Asked:
        if choice is not None:
            await self.conductor.choose(choice)
        before = await served(self.asker.url)
        self.watch.begin()
        beginning = time.monotonic()
        samples = await ask(beginning)
        failed = [sample.status for sample in samples if sample.status != OK]
        if failed:
            raise CaseFailed(f"{len(failed)} of {len(samples)} requests came to {', '.join(sorted(set(failed)))}")
        after = await served(self.asker.url)
        phase = Phase(beginning, time.monotonic(), samples)
        return Asked(requests, phase, self.watch.heard(), after.length_since(before))


@dataclass(frozen=True, slots=True)
class Live:
    """What a real run showed, and what was calibrated before it."""

    judged: Asked
    calibration: Calibration
    drift: Drift
    complaints: list[str]


async def measure(case: Case, effort: Effort, folder: Path, notify: Callable[[str], None]) -> Live:
    """Runs the services of a case; raises as run_case does."""
    keys = [new_key() for _ in range(num_keys(case))]
    plan = plan_of(case, effort, folder, keys)
    async with (
        cells.running(plan, folder, notify) as cell,
        conducting(cell.nats_url, len(case.drafts), case.num_verifiers) as conductor,
        watching(cell.nats_url) as watch,
    ):
        async with connected(cell.url, keys[0]) as gateway:
            model = await gateway.first_model()
        asker = Asker(cell.url, model, iter(keys[1:]))
        live = LiveCase(case, effort, plan.drafter_names, asker, conductor, watch)
        num, choice = case.num_at_once, case.choice if case.drafts else None
        await live.clients(effort.others, num, num, WARM_UP_TOKENS, choice)
        cell.begin()
        alone = await live.clients(effort.others, NUM_ALONE, 1, ALONE_TOKENS, None)
        busy = await live.clients(effort.others, _num_busy(case), num, BUSY_TOKENS, AHEAD if case.drafts else None)
        # Before and behind, so that a machine that changes meanwhile is met about in the middle.
        num, others = case.num_calibrating, effort.others
        notify(f"{case.name}: calibrating with {num} requests, and with as many behind")
        before = await live.load(others, num, BEFORE)
        notify(f"{case.name}: judged by {case.num_requests} requests")
        judged = await live.load(effort.judged, case.num_requests, JUDGED)
        behind = await live.load([*others[num:], *others[:num]], num, BEHIND)
        complaints = [each for each in cell.complaints() if OVERRUN not in each]  # clocks have seen how long it took
        clocks = read_clocks(plan)
    complaints += complaints_about(judged, effort.num_tokens)
    rtts_ms = [asked.heard.rtt_ms for asked in (before, behind) if asked.heard.rtt_ms is not None]
    calibration = calibrate(
        clocks,
        known_times(case),
        alone.phase,
        busy.phase,
        [before.phase, behind.phase],
        fmean(rtts_ms) if rtts_ms else None,
    )
    drift = drift_of(calibration, clocks.within(judged.phase), judged.heard.rtt_ms)
    return Live(judged, calibration, drift, complaints)


def read_clocks(plan: CellPlan) -> Clocks:
    """What all verifiers and drafters of a plan have noted so far."""
    assert plan.clocks is not None
    folder = plan.clocks
    passes, steps = (
        [read_notes(folder / f"{name}.jsonl") for name in plan.processes(kind)] for kind in (VERIFIER, DRAFTER)
    )
    return Clocks(passes, steps)


def complaints_about(judged: Asked, num_tokens: int) -> list[str]:
    """Answers of another length than was asked for."""
    lengths = {sample.num_tokens for sample in judged.phase.samples} - {num_tokens}
    return [f"answers of {', '.join(map(str, sorted(lengths)))} tokens, not {num_tokens}"] if lengths else []


def run_case(case: Case, effort: Effort, origin: Origin, notify: Callable[[str], None]) -> CaseResult:
    """For real, then simulated. Raises CaseFailed, NotCalibrated, or TimeoutError for a system that doesn't start."""
    with TemporaryDirectory(prefix="dsd-validate-") as name:
        folder = Path(name)
        live = asyncio.run(measure(case, effort, folder, notify))
        judged, calibration = live.judged, live.calibration
        scenario = scenario_of(case, calibration, effort.recordings, judged.requests, judged.phase.samples, folder)
        simulated = simulate(scenario, folder, calibration.request_ms)
    return CaseResult(
        case=case,
        num_tokens=effort.num_tokens,
        code=effort.code,
        live=judged.figures,
        simulated=simulated,
        calibration=calibration,
        drift=live.drift,
        took_s=judged.phase.end_s - judged.phase.begin_s,
        complaints=live.complaints,
        origin=origin,
    )
