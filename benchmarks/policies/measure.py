"""Measures one cell: every mode answers the same prompts in turn, in one running system.

Invariant: a round is one prompt per session in all modes that take part, in random order, so a hard prompt or a slow
minute affects them alike; only whole rounds count. In a race slow modes leave, and half of the time is for *adaptive*
and its best rival. All modes give the same texts, so their lengths agree; a difference voids the cell. Each
mode has its own API key, so the verifier copies no KV cache from one mode to another and all modes prefill.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.cell import ProcessUsage, running
from benchmarks.harness.cell_plan import WITHOUT_CONTROLLER, CellPlan, StandinPlan
from benchmarks.harness.latency import OK, RequestSample
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.origin import Origin, digest_of
from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.harness.scripted_controller import ScriptedController, scripted_controller
from benchmarks.policies.plan import ADAPTIVE, LIVE_POLICIES, CellSpec, ServingMode
from benchmarks.policies.rounds import BenchRound, best_rival, contenders, is_whole
from client.gateway import GatewayClient
from client.wire import AnswerOptions, DsdOptions
from services.gateway.admission.api_keys import new_key

MIN_ROUNDS = 3
WARM_UP_TOKENS = 16
NUM_LEARNING = 3  # whole answers with which a policy warms up


@dataclass(frozen=True)
class RunSettings:
    """What all cells of a run have in common."""

    models: Path
    prompts: Sequence[str]
    max_tokens: int
    seconds: float  # for the rounds of a cell; MIN_ROUNDS are made in any case, also of the two that end a race
    seed: int
    standin: StandinPlan | None = None

    @property
    def kind_of_models(self) -> str:
        """The stand-ins; empty: real models."""
        return str(self.standin) if self.standin else ""

    @cached_property
    def inputs(self) -> str:
        """Digest of everything that determines a figure. Results with another digest are measured again."""
        files = (self.standin.profile, self.standin.recording) if self.standin else ()
        contents = (path.read_bytes() for path in files if path is not None)
        return digest_of(self.models, repr((list(self.prompts), self.seed)).encode(), *contents)


@dataclass(frozen=True, slots=True)
class CellResult:
    """The result file of a cell."""

    draft: str
    rtt_ms: int
    num_sessions: int
    modes: list[str]
    max_tokens: int
    rounds: list[BenchRound]
    usage: dict[str, ProcessUsage]
    complaints: list[str]  # why the figures are void; empty: they count
    origin: Origin
    standin: str = ""  # RunSettings.kind_of_models
    num_drafters: int = 1
    inputs: str = ""  # RunSettings.inputs
    num_race: int | None = None  # rounds before those of adaptive and its rival; None: no race, or an answer failed


async def run_cell(spec: CellSpec, settings: RunSettings, origin: Origin, notify: Callable[[str], None]) -> CellResult:
    """Starts the system, measures, stops it."""
    with TemporaryDirectory(prefix="dsd-bench-") as run_dir:
        keys = {mode.name: new_key() for mode in spec.modes}
        plan = plan_of(spec, settings, tuple(keys.values()))
        async with (
            running(plan, Path(run_dir), notify) as cell,
            scripted_controller(cell.nats_url, spec.num_drafters, policies=LIVE_POLICIES) as controller,
            AsyncExitStack() as stack,
        ):
            gateways = {name: await stack.enter_async_context(connected(cell.url, key)) for name, key in keys.items()}
            model = await next(iter(gateways.values())).first_model()
            runner = CellRunner(spec, settings, gateways, controller, model)
            await runner.warm_up()
            cell.begin()
            rounds, num_race = await runner.rounds(notify)
            usage, complaints = cell.usage(), cell.complaints() + complaints_about(rounds)
    return CellResult(
        draft=spec.draft,
        rtt_ms=spec.rtt_ms,
        num_sessions=spec.num_sessions,
        modes=[mode.name for mode in spec.modes],
        max_tokens=settings.max_tokens,
        rounds=rounds,
        usage=usage,
        complaints=complaints,
        origin=origin,
        standin=settings.kind_of_models,
        num_drafters=spec.num_drafters,
        inputs=settings.inputs,
        num_race=num_race,
    )


def plan_of(spec: CellSpec, settings: RunSettings, api_keys: tuple[str, ...]) -> CellPlan:
    """The processes of a cell."""
    return CellPlan(
        settings.models,
        names=WITHOUT_CONTROLLER,
        link=LinkConditions.of_round_trip(spec.rtt_ms),
        standin=settings.standin,
        api_keys=api_keys,
        seed=settings.seed,
        drafts=(spec.draft,) * spec.num_drafters,
    )


@dataclass(slots=True)
class CellRunner:
    """Runs the rounds of one cell. `gateways`: a client for each mode."""

    spec: CellSpec
    settings: RunSettings
    gateways: dict[str, GatewayClient]
    controller: ScriptedController
    model: str

    async def warm_up(self) -> None:
        """Answers that do not count; they warm up kernels, fitted costs and policies."""
        for mode in self.spec.modes:
            is_learning = isinstance(mode.control, str)
            for _ in range(NUM_LEARNING if is_learning else 1):
                await self._answers(mode, 0, self.settings.max_tokens if is_learning else WARM_UP_TOKENS)

    async def rounds(self, notify: Callable[[str], None]) -> tuple[list[BenchRound], int | None]:
        """As many rounds as the time allows, from the prompt after that of the warm-up; how many of them are a race."""
        order, begin = random.Random(self.settings.seed), time.monotonic()
        known = {mode.name: mode for mode in self.spec.modes}
        made: list[BenchRound] = []
        racing, is_race = list(known), self.spec.is_race
        while len(made) < MIN_ROUNDS or time.monotonic() < begin + self.settings.seconds / (1 + is_race):
            made.append(await self._round(len(made) + 1, order.sample([known[name] for name in racing], len(racing))))
            notify(f"{self.spec}: round {len(made)}, {len(racing)} modes")
            if is_race:
                racing = contenders(made, racing)
        if not is_race or not is_whole(made):
            return made, None
        num_race, finalists = len(made), [best_rival(made, racing), ADAPTIVE.name]
        while len(made) < num_race + MIN_ROUNDS or time.monotonic() < begin + self.settings.seconds:
            made.append(await self._round(len(made) + 1, order.sample([known[name] for name in finalists], 2)))
            notify(f"{self.spec}: round {len(made)}, {' and '.join(finalists)}")
        return made, num_race

    async def _round(self, number: int, modes: Sequence[ServingMode]) -> BenchRound:
        current = BenchRound({}, {})
        for mode in modes:
            current.samples[mode.name] = await self._answers(mode, number, self.settings.max_tokens)
            current.draft_ms[mode.name] = self.controller.draft_ms
        return current

    async def _answers(self, mode: ServingMode, number: int, max_tokens: int) -> list[RequestSample]:
        """One answer for each session, all at once."""
        await self.controller.choose(mode.control)
        options = AnswerOptions(max_tokens, temperature=0.0, speculation=DsdOptions(mode.speculation))
        template, now, prompts = RequestTemplate(self.model, options), time.monotonic(), self.settings.prompts

        async def one(session: int) -> RequestSample:
            index = (number * self.spec.num_sessions + session) % len(prompts)
            scheduled = ScheduledRequest(index, prompts[index], now, now)
            return await measure_request(self.gateways[mode.name], template, scheduled)

        return list(await asyncio.gather(*(one(session) for session in range(self.spec.num_sessions))))


def complaints_about(rounds: Sequence[BenchRound]) -> list[str]:
    """Failed requests, and answers whose length depends on the mode."""
    found = []
    for number, each in enumerate(rounds):
        for mode, samples in each.samples.items():
            found += [f"round {number}, {mode}: {sample.status}" for sample in samples if sample.status != OK]
        lengths = {tuple(sample.num_tokens for sample in samples) for samples in each.samples.values()}
        if len(lengths) > 1:
            found.append(f"round {number}: answers differ in length among modes: {sorted(lengths)}")
    return found
