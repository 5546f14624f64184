"""Measures one cell: every mode answers the same prompts in turn, within one running system.

Invariant: a round is one prompt (or one prompt for each session at once) in all modes, in random order, so that what a
prompt or a minute is like falls on all modes alike; only whole rounds count. Texts are the same in all modes, so their
lengths are; where they are not, the cell complains. Each mode has an API key of its own: the verifier copies no KV
cache of a prompt from one mode to another, so that all of them prefill.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.harness import cell as cells
from benchmarks.harness.asking import Asking, Due, connected, measure
from benchmarks.harness.cell import Usage
from benchmarks.harness.cell_plan import DRAFTER, GATEWAY, VERIFIER, CellPlan, Standin
from benchmarks.harness.conductor import Conductor, conducting
from benchmarks.harness.latency import OK, Sample
from benchmarks.harness.link import Conditions
from benchmarks.harness.origin import Origin, digest_of
from benchmarks.policies.plan import TARGET_ONLY, CellSpec, Mode
from client.gateway import GatewayClient
from client.wire import AnswerOptions, DsdOptions
from services.gateway.admission.api_keys import digest, new_key

MIN_ROUNDS = 3
WARM_UP_TOKENS = 16
NUM_LEARNING = 3  # whole answers from which the adaptive policy learns first
NAMES = (VERIFIER, DRAFTER, GATEWAY)  # the conductor is the controller


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    models: Path
    prompts: Sequence[str]
    max_tokens: int
    seconds: float  # for the rounds; at least MIN_ROUNDS are made
    seed: int
    standin: Standin | None = None

    @property
    def kind_of_models(self) -> str:
        """Which stand-ins; empty: the real models."""
        return str(self.standin) if self.standin else ""

    @cached_property
    def inputs(self) -> str:
        """Digest of all that figures follow from: cells of others are not kept."""
        files = (self.standin.profile, self.standin.recording) if self.standin else ()
        contents = (path.read_bytes() for path in files if path is not None)
        return digest_of(self.models, repr((list(self.prompts), self.seed)).encode(), *contents)


@dataclass(frozen=True, slots=True)
class Round:
    """The samples of each mode, one for each session, and the drafter's step when they were over (0: none yet)."""

    samples: dict[str, list[Sample]]
    draft_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class CellResult:
    """What is kept of a cell. `complaints`: why its figures are void, empty where they are not."""

    draft: str
    rtt_ms: int
    num_sessions: int
    modes: list[str]
    max_tokens: int
    rounds: list[Round]
    usage: dict[str, Usage]
    complaints: list[str]
    origin: Origin
    standin: str = ""  # which; empty: the real models
    num_drafters: int = 1
    inputs: str = ""  # digest of code, models, prompts, seed and stand-ins


def read_result(path: Path) -> CellResult:
    """Raises ValueError naming the file for one that is no result."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CellResult)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no result of a cell: {error}") from error


def write_result(path: Path, result: CellResult) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    unfinished.replace(path)


async def run_cell(spec: CellSpec, effort: Effort, origin: Origin, notify: Callable[[str], None]) -> CellResult:
    """Starts the system, measures, stops it."""
    with TemporaryDirectory(prefix="dsd-bench-") as run_dir:
        keys = {mode.name: new_key() for mode in spec.modes}
        plan = plan_of(spec, effort, write_keys(Path(run_dir), keys.values()), keys[TARGET_ONLY.name])
        async with (
            cells.running(plan, Path(run_dir), notify) as cell,
            conducting(cell.nats_url, spec.num_drafters) as conductor,
            AsyncExitStack() as stack,
        ):
            gateways = {name: await stack.enter_async_context(connected(cell.url, key)) for name, key in keys.items()}
            bench = CellBench(spec, effort, gateways, conductor, await gateways[TARGET_ONLY.name].first_model())
            await bench.warm_up()
            cell.begin()
            rounds = await bench.rounds(notify)
            usage, complaints = cell.usage(), cell.complaints() + complaints_about(rounds)
    return CellResult(
        draft=spec.draft,
        rtt_ms=spec.rtt_ms,
        num_sessions=spec.num_sessions,
        modes=[mode.name for mode in spec.modes],
        max_tokens=effort.max_tokens,
        rounds=rounds,
        usage=usage,
        complaints=complaints,
        origin=origin,
        standin=effort.kind_of_models,
        num_drafters=spec.num_drafters,
        inputs=effort.inputs,
    )


def plan_of(spec: CellSpec, effort: Effort, keys_file: Path, api_key: str) -> CellPlan:
    """What runs for a cell."""
    link, env = Conditions.of_round_trip(spec.rtt_ms), {"DSD_API_KEYS_FILE": str(keys_file)}
    return CellPlan(
        effort.models,
        spec.draft,
        NAMES,
        link,
        standin=effort.standin,
        env=env,
        api_key=api_key,
        seed=effort.seed,
        drafts=(spec.draft,) * spec.num_drafters,
    )


def write_keys(folder: Path, keys: Iterable[str]) -> Path:
    """The file from which the gateway knows the keys."""
    path = folder / "keys.toml"
    entries = [f'[key-{number}]\nsha256 = "{digest(key).hex()}"\n' for number, key in enumerate(keys)]
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


@dataclass(slots=True)
class CellBench:
    """The rounds of one cell. `gateways`: one for each mode."""

    spec: CellSpec
    effort: Effort
    gateways: dict[str, GatewayClient]
    conductor: Conductor
    model: str

    async def warm_up(self) -> None:
        """Answers that don't count: then kernels, fitted costs and adaptive window are those of a running system."""
        for mode in self.spec.modes:
            is_learning = isinstance(mode.way, str)
            for _ in range(NUM_LEARNING if is_learning else 1):
                await self._answers(mode, 0, self.effort.max_tokens if is_learning else WARM_UP_TOKENS)

    async def rounds(self, notify: Callable[[str], None]) -> list[Round]:
        """As many as the time allows, beginning with the prompt behind the warm-up's."""
        order = random.Random(self.effort.seed)
        ends_at = time.monotonic() + self.effort.seconds
        made: list[Round] = []
        while len(made) < MIN_ROUNDS or time.monotonic() < ends_at:
            modes = order.sample(self.spec.modes, len(self.spec.modes))
            current = Round({}, {})
            for mode in modes:
                current.samples[mode.name] = await self._answers(mode, len(made) + 1, self.effort.max_tokens)
                current.draft_ms[mode.name] = self.conductor.draft_ms
            made.append(current)
            notify(f"{self.spec}: round {len(made)}")
        return made

    async def _answers(self, mode: Mode, number: int, max_tokens: int) -> list[Sample]:
        """One answer a session, all at once."""
        await self.conductor.choose(mode.way)
        options = AnswerOptions(max_tokens, temperature=0.0, speculation=DsdOptions(mode.speculation))
        asking, beginning, prompts = Asking(self.model, options), time.monotonic(), self.effort.prompts

        async def one(session: int) -> Sample:
            index = (number * self.spec.num_sessions + session) % len(prompts)
            return await measure(self.gateways[mode.name], asking, Due(index, prompts[index], beginning, beginning))

        return list(await asyncio.gather(*(one(session) for session in range(self.spec.num_sessions))))


def complaints_about(rounds: Sequence[Round]) -> list[str]:
    """Failed requests, and answers whose length depends on the mode."""
    found = []
    for number, each in enumerate(rounds):
        for mode, samples in each.samples.items():
            found += [f"round {number}, {mode}: {sample.status}" for sample in samples if sample.status != OK]
        lengths = {tuple(sample.num_tokens for sample in samples) for samples in each.samples.values()}
        if len(lengths) > 1:
            found.append(f"round {number}: answers differ in length among modes: {sorted(lengths)}")
    return found
