"""Plans: which draft model, quantisation and window is best for each class of devices.

As in ConfigSpec (arXiv 2604.09722), each draft model of a class is tried with each window and judged by goodput, cost
and energy. Here each candidate is simulated, on verifiers of its own.

Invariant: a choice is the best candidate by its objective, and no other candidate dominates it. Equal plans write equal
bytes, whatever the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Struct
from pydantic import Field, model_validator

from dsd_sim.scenario.demand import Closed
from dsd_sim.scenario.scenario import (
    Guesses,
    IndependentGuesses,
    Link,
    Objective,
    RecordedGuesses,
    check_times,
    parse_table,
    read_toml,
)
from dsd_sim.scenario.table import BadScenario, Count, NotNegative, Positive, Table, naming_key
from dsd_sim.studies.cells import Cell, cell_of, settings_of
from dsd_sim.studies.report import SimReport, write_csv, write_json
from shared.data.draft_card import read_card
from shared.data.profiles import PassTimes, StepTimes, read_profile
from shared.data.recording import read_recording
from shared.protocol.messages import MAX_WINDOW

Name: TypeAlias = Annotated[str, Field(min_length=1)]
Window: TypeAlias = Annotated[int, Field(ge=0, le=MAX_WINDOW)]
Losses: TypeAlias = tuple[float, float, float]  # one per Goal, in its order; less is better


class Goal(StrEnum):
    """An objective of a plan."""

    GOODPUT = "goodput"
    COST = "cost"
    ENERGY = "energy"


# --- the file ---------------------------------------------------------------------------------------------------------


class PlanDraft(Table):
    """A draft model on one device of a class."""

    name: Name
    quantisation: Name
    times: StepTimes | None = None
    profile: str | None = None  # file with the times, relative to the plan
    guesses: Guesses | None = None
    card: str | None = None  # of a distilled draft, relative to the plan: its acceptance at temperature 0 and its step
    power_w: Positive  # of the device while it drafts

    @model_validator(mode="after")
    def _check(self) -> PlanDraft:
        if self.card is not None and (self.times or self.profile or self.guesses):
            raise ValueError("a card excludes times, profile and guesses")
        if self.card is None:
            check_times(self.times, self.profile)
            if self.guesses is None:
                raise ValueError("either guesses or card must be given")
        return self

    def read(self, folder: Path) -> tuple[StepTimes, Guesses]:
        """Raises ValueError or OSError for a file that can't be used."""
        if self.card is not None:
            card = read_card(folder / self.card)
            guesses = IndependentGuesses(kind="independent", rate=card.acceptance.greedy)
            return StepTimes(step_ms=card.step_ms), guesses
        assert self.guesses is not None
        return self.times or read_profile(folder / str(self.profile)).step_times, self.guesses


class DeviceClass(Table):
    """A class of `count` equal devices, each with one session."""

    name: Name
    count: Count
    link: Link
    cost_per_hour: NotNegative = 0.0  # of one device while it has a session
    draft: Annotated[tuple[PlanDraft, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> DeviceClass:
        if len({(each.name, each.quantisation) for each in self.draft}) < len(self.draft):
            raise ValueError("draft: two have the same name and quantisation")
        return self


class PlanVerifier(Table):
    """A verifier with all its accelerators."""

    times: PassTimes | None = None
    profile: str | None = None  # file with the times, relative to the plan
    token_budget: Count = 256
    prefill_chunk: Count = 64
    kv_tokens: Count = 32768
    power_w: Positive  # while a pass runs
    cost_per_hour: NotNegative  # while a pass runs

    @model_validator(mode="after")
    def _check(self) -> PlanVerifier:
        check_times(self.times, self.profile)
        return self


class Deployment(Table):
    """The file of a plan."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    transport: Literal["sliding", "stop-and-wait"] = "sliding"
    windows: Annotated[tuple[Window, ...], Field(min_length=1)]  # 0: target-only
    workload: Closed  # num_clients: most sessions on a verifier
    edge: Annotated[tuple[DeviceClass, ...], Field(min_length=1)]
    cloud: PlanVerifier
    objective: Objective = Objective()
    assumed: tuple[str, ...] = ()  # sentences that name the assumptions

    @model_validator(mode="after")
    def _check(self) -> Deployment:
        if len(set(self.windows)) < len(self.windows):
            raise ValueError("windows: a value is given twice")
        if len({each.name for each in self.edge}) < len(self.edge):
            raise ValueError("edge: two have the same name")
        return self

    def num_sessions(self, device: DeviceClass) -> int:
        """Sessions at once on one verifier of a class."""
        return min(device.count, self.workload.num_clients)

    def num_verifiers(self, device: DeviceClass) -> int:
        """Verifiers that a class needs."""
        return -(-device.count // self.workload.num_clients)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """A way to serve a class of devices. `draft`: None for target-only serving."""

    device: DeviceClass
    draft: PlanDraft | None
    window: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A deployment and its candidates, grouped by class."""

    deployment: Deployment
    candidates: tuple[DraftCandidate, ...]


def read_plan(path: Path) -> DevicePlan:
    """Raises BadScenario for a plan that can't be run, OSError for a file that can't be read."""
    deployment = parse_table(Deployment, read_toml(path), path)
    common = _common(deployment, path)
    candidates: list[DraftCandidate] = []
    for index, device in enumerate(deployment.edge):
        clients = {"workload": common["workload"] | {"num_clients": deployment.num_sessions(device)}}
        if 0 in deployment.windows:
            cell = cell_of(common | clients, path, {"policies.drafting": False})
            candidates.append(DraftCandidate(device, None, 0, cell))
        for number, draft in enumerate(device.draft):
            content = common | clients | {"edge": [_edge(deployment, index, number, path)]}
            for window in filter(None, deployment.windows):
                cell = cell_of(content, path, settings_of("policies", _policies(deployment, window)))
                candidates.append(DraftCandidate(device, draft, window, cell))
    return DevicePlan(deployment, tuple(candidates))


def _common(deployment: Deployment, path: Path) -> dict[str, Any]:
    """The content that the scenarios of all candidates share."""
    cloud = deployment.cloud
    with naming_key(f"{path}: cloud.profile"):
        times = cloud.times or read_profile(path.parent / str(cloud.profile)).pass_times
    limits = cloud.model_dump(include={"token_budget", "prefill_chunk", "kv_tokens"})
    return {
        "name": deployment.name,
        "seed": deployment.seed,
        "workload": deployment.workload.model_dump(mode="json", warnings=False),
        "cloud": [limits | {"count": 1, "times": times.model_dump(mode="json")}],
        "objective": deployment.objective.model_dump(mode="json"),
    }


def _edge(deployment: Deployment, index: int, number: int, path: Path) -> dict[str, Any]:
    """The `edge` table of a scenario: a class of devices with one of its draft models."""
    device = deployment.edge[index]
    draft, place = device.draft[number], f"{path}: edge.{index}.draft.{number}"
    with naming_key(f"{place}.{'profile' if draft.card is None else 'card'}"):
        times, guesses = draft.read(path.parent)
    if times.step_ms == 0:
        raise BadScenario(f"{place}: step_ms must be above 0")
    if isinstance(guesses, RecordedGuesses):
        with naming_key(f"{place}.guesses.file"):
            read_recording(path.parent / guesses.file)
    return {
        "count": deployment.num_sessions(device),
        "times": times.model_dump(mode="json"),
        "link": device.link.model_dump(mode="json"),
        "guesses": guesses.model_dump(mode="json"),
    }


def _policies(deployment: Deployment, window: int) -> dict[str, Any]:
    """Settings of a window. In stop-and-wait a pass verifies all guesses, as in published systems."""
    if deployment.transport == "stop-and-wait":
        return {"window": window, "stop_and_wait": True, "batching": "fifo"}
    return {"window": window}


# --- judging ----------------------------------------------------------------------------------------------------------


class PlanRow(Struct, frozen=True):
    """A candidate and its figures. `draft` and `quantisation` are empty for target-only serving."""

    device: str
    draft: str
    quantisation: str
    window: int
    num_verifiers: int  # for all devices of the class
    session_goodput: float  # tokens/s per session, of answers within the objective
    goodput: float  # tokens/s per verifier
    cost: float  # per million tokens of goodput; infinite, in JSON null, without goodput
    energy: float  # joules per token of goodput; likewise
    acceptance: float
    verifier_utilisation: float
    drafter_utilisation: float
    cell: str
    is_dominated: bool = False
    best_for: tuple[Goal, ...] = ()

    @property
    def losses(self) -> Losses:
        return (-self.session_goodput, self.cost, self.energy)


def dominates(one: Losses, other: Losses) -> bool:
    """Whether `one` is better in at least one objective and worse in none."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def pareto_of(losses: Sequence[Losses]) -> set[int]:
    """Indices of the candidates that no other dominates."""
    return {place for place, own in enumerate(losses) if not any(dominates(other, own) for other in losses)}


def best_of(losses: Sequence[Losses], goal: Goal) -> int:
    """Index of the best candidate by an objective. Ties are broken by all three losses, so none dominates it."""
    which = list(Goal).index(goal)
    return min(range(len(losses)), key=lambda place: (losses[place][which], losses[place]))


def rows_of(plan: DevicePlan, reports: Mapping[str, SimReport]) -> list[PlanRow]:
    """A row for each candidate, in order. `reports`: by cell key."""
    rows = []
    for device in plan.deployment.edge:
        own = [each for each in plan.candidates if each.device is device]
        rows += _judged([row_of(plan.deployment, each, reports[each.cell.key]) for each in own])
    return rows


def row_of(deployment: Deployment, candidate: DraftCandidate, report: SimReport) -> PlanRow:
    """The figures of one candidate, without the comparison to others."""
    device, draft, cloud = candidate.device, candidate.draft, deployment.cloud
    num_sessions = deployment.num_sessions(device)
    price, power_w = report.verifier_utilisation * cloud.cost_per_hour, report.verifier_utilisation * cloud.power_w
    if draft is not None:
        price += num_sessions * device.cost_per_hour
        power_w += num_sessions * report.drafter_utilisation * draft.power_w
    seconds = 1 / report.goodput if report.goodput > 0 else math.inf  # per token of a verifier
    return PlanRow(
        device=device.name,
        draft=draft.name if draft else "",
        quantisation=draft.quantisation if draft else "",
        window=candidate.window,
        num_verifiers=deployment.num_verifiers(device),
        session_goodput=report.goodput / num_sessions,
        goodput=report.goodput,
        cost=price / 3600 * seconds * 1e6,
        energy=power_w * seconds,
        acceptance=report.acceptance,
        verifier_utilisation=report.verifier_utilisation,
        drafter_utilisation=report.drafter_utilisation,
        cell=candidate.cell.key,
    )


def _judged(rows: Sequence[PlanRow]) -> list[PlanRow]:
    """The rows of one class with the results of their comparison. A row without goodput is never the best."""
    losses = [row.losses for row in rows]
    front, best = pareto_of(losses), {goal: best_of(losses, goal) for goal in Goal}
    found = []
    for place, row in enumerate(rows):
        best_for = tuple(goal for goal in Goal if best[goal] == place and row.goodput > 0)
        found.append(msgspec.structs.replace(row, is_dominated=place not in front, best_for=best_for))
    return found


class PlanFindings(Struct, frozen=True):
    """The file plan.json."""

    plan: str
    transport: str
    assumed: tuple[str, ...]
    seed: int
    rows: list[PlanRow]


def write_plan(plan: DevicePlan, rows: list[PlanRow], folder: Path) -> None:
    """Writes plan.json, and plan.csv with one line per candidate."""
    deployment = plan.deployment
    findings = PlanFindings(deployment.name, deployment.transport, deployment.assumed, deployment.seed, rows)
    write_json(folder / "plan.json", findings)
    shared = {"plan": deployment.name, "seed": deployment.seed}
    lines = [shared | msgspec.structs.asdict(row) | {"best_for": " ".join(row.best_for)} for row in rows]
    write_csv(folder / "plan.csv", lines)
