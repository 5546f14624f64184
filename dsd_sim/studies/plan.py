"""Plans: the draft model, its quantisation and the window that a class of devices should have.

As ConfigSpec does (arXiv 2604.09722), all drafts of a class are tried with all windows, and judged by goodput, cost and
energy; here each is simulated, on a verifier of its own.

Invariant: a choice is the best of all candidates by its objective, and no candidate dominates it. Equal plans write
equal bytes, whatever the objective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Struct
from pydantic import Field, model_validator

from dsd_sim.scenario.demand import Closed
from dsd_sim.scenario.scenario import Guesses, Link, Objective, RecordedGuesses, read_toml
from dsd_sim.scenario.table import BadScenario, Count, NotNegative, Part, Positive
from dsd_sim.studies.cells import Cell, cell_of, part_of, settings_of
from dsd_sim.studies.report import Report, write_csv
from shared.data.profiles import PassTimes, StepTimes, read_profile
from shared.data.recording import read_recording
from shared.protocol.messages import MAX_WINDOW

Name: TypeAlias = Annotated[str, Field(min_length=1)]
Window: TypeAlias = Annotated[int, Field(ge=0, le=MAX_WINDOW)]
Losses: TypeAlias = tuple[float, float, float]  # by the objectives in their order; the less the better


class Goal(StrEnum):
    """An objective."""

    GOODPUT = "goodput"
    COST = "cost"
    ENERGY = "energy"


# --- the file ---------------------------------------------------------------------------------------------------------


def _check_times(part: DraftModel | Verifier) -> None:
    if (part.times is None) == (part.profile is None):
        raise ValueError("either times or a profile must be given")


class DraftModel(Part):
    """A draft model as it would run on one device of a class."""

    name: Name
    quantisation: Name
    times: StepTimes | None = None
    profile: str | None = None  # a file with them, relative to the plan
    guesses: Guesses
    power_w: Positive  # of the device, while it drafts

    @model_validator(mode="after")
    def _check(self) -> DraftModel:
        _check_times(self)
        return self


class DeviceClass(Part):
    """`count` devices alike, each with one session."""

    name: Name
    count: Count
    link: Link
    cost_per_hour: NotNegative = 0.0  # of one device, as long as it has a session
    draft: Annotated[tuple[DraftModel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> DeviceClass:
        if len({(each.name, each.quantisation) for each in self.draft}) < len(self.draft):
            raise ValueError("draft: two have the same name and quantisation")
        return self


class Verifier(Part):
    """The verifier, with all its accelerators."""

    times: PassTimes | None = None
    profile: str | None = None  # a file with them, relative to the plan
    token_budget: Count = 256
    prefill_chunk: Count = 64
    kv_tokens: Count = 32768
    power_w: Positive  # while a pass runs
    cost_per_hour: NotNegative  # paid for the time of passes

    @model_validator(mode="after")
    def _check(self) -> Verifier:
        _check_times(self)
        return self


class Deployment(Part):
    """The file of a plan."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    transport: Literal["sliding", "stop-and-wait"] = "sliding"
    windows: Annotated[tuple[Window, ...], Field(min_length=1)]  # 0: the cloud alone
    workload: Closed  # num_clients: sessions on a verifier at most
    edge: Annotated[tuple[DeviceClass, ...], Field(min_length=1)]
    cloud: Verifier
    objective: Objective = Objective()
    assumed: tuple[str, ...] = ()  # sentences: which figures are assumptions

    @model_validator(mode="after")
    def _check(self) -> Deployment:
        if len(set(self.windows)) < len(self.windows):
            raise ValueError("windows: one is given twice")
        if len({each.name for each in self.edge}) < len(self.edge):
            raise ValueError("edge: two have the same name")
        return self

    def num_sessions(self, device: DeviceClass) -> int:
        """At once, on one of the verifiers of a class."""
        return min(device.count, self.workload.num_clients)

    def num_verifiers(self, device: DeviceClass) -> int:
        """That a class needs."""
        return -(-device.count // self.workload.num_clients)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to serve a class of devices. `draft`: None where the cloud does it alone."""

    device: DeviceClass
    draft: DraftModel | None
    window: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment and all its candidates, those of a class together."""

    deployment: Deployment
    candidates: tuple[Candidate, ...]


def read_plan(path: Path) -> Plan:
    """Raises BadScenario for what can't be run, OSError for a file that can't be read."""
    deployment = part_of(Deployment, read_toml(path), path)
    common = _common(deployment, path)
    candidates: list[Candidate] = []
    for index, device in enumerate(deployment.edge):
        clients = {"workload": common["workload"] | {"num_clients": deployment.num_sessions(device)}}
        if 0 in deployment.windows:
            cell = cell_of(common | clients, path, {"policies.drafting": False})
            candidates.append(Candidate(device, None, 0, cell))
        for number, draft in enumerate(device.draft):
            content = common | clients | {"edge": [_edge(deployment, index, number, path)]}
            for window in filter(None, deployment.windows):
                cell = cell_of(content, path, settings_of("policies", _policies(deployment, window)))
                candidates.append(Candidate(device, draft, window, cell))
    return Plan(deployment, tuple(candidates))


def _common(deployment: Deployment, path: Path) -> dict[str, Any]:
    """What the scenarios of all candidates have."""
    cloud = deployment.cloud
    with _key_told(path, "cloud.profile"):
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
    """A class of devices with one of its drafts, as a scenario has it."""
    device = deployment.edge[index]
    draft, place = device.draft[number], f"edge.{index}.draft.{number}"
    with _key_told(path, f"{place}.profile"):
        times = draft.times or read_profile(path.parent / str(draft.profile)).step_times
    if times.step_ms == 0:
        raise BadScenario(f"{path}: {place}: a draft step takes more than 0 ms")
    if isinstance(draft.guesses, RecordedGuesses):
        with _key_told(path, f"{place}.guesses.file"):
            read_recording(path.parent / draft.guesses.file)
    return {
        "count": deployment.num_sessions(device),
        "times": times.model_dump(mode="json"),
        "link": device.link.model_dump(mode="json"),
        "guesses": draft.guesses.model_dump(mode="json"),
    }


def _policies(deployment: Deployment, window: int) -> dict[str, Any]:
    """In stop-and-wait a pass verifies whatever was sent, as others have it."""
    if deployment.transport == "stop-and-wait":
        return {"window": window, "stop_and_wait": True, "batching": "fifo"}
    return {"window": window}


@contextmanager
def _key_told(path: Path, key: str) -> Iterator[None]:
    """What is wrong with a file that the plan names at the key."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadScenario(f"{path}: {key}: {error}") from error


# --- judging ----------------------------------------------------------------------------------------------------------


class Row(Struct, frozen=True):
    """A candidate and what it showed. `draft` and `quantisation` are empty where the cloud does it alone."""

    device: str
    draft: str
    quantisation: str
    window: int
    num_verifiers: int  # for all devices of the class
    session_goodput: float  # tokens/s of one session, of answers within the objective
    goodput: float  # of all sessions of a verifier
    cost: float  # of a million tokens of goodput; infinite, and null in JSON, where there is none
    energy: float  # joules of a token of goodput, likewise
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
    """Whether it is better in one and worse in none."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def pareto_of(losses: Sequence[Losses]) -> set[int]:
    """The places of those that no other dominates."""
    return {place for place, own in enumerate(losses) if not any(dominates(other, own) for other in losses)}


def best_of(losses: Sequence[Losses], goal: Goal) -> int:
    """The place of the best by an objective. Of equal ones the first that none dominates, as a dominating one would
    come before it in the order of all three."""
    which = list(Goal).index(goal)
    return min(range(len(losses)), key=lambda place: (losses[place][which], losses[place]))


def rows_of(plan: Plan, reports: Mapping[str, Report]) -> list[Row]:
    """Of all candidates, in their order; `reports` by the keys of cells."""
    rows = []
    for device in plan.deployment.edge:
        own = [each for each in plan.candidates if each.device is device]
        rows += _judged([row_of(plan.deployment, each, reports[each.cell.key]) for each in own])
    return rows


def row_of(deployment: Deployment, candidate: Candidate, report: Report) -> Row:
    """Not compared with others yet."""
    device, draft, cloud = candidate.device, candidate.draft, deployment.cloud
    num_sessions = deployment.num_sessions(device)
    price, power_w = report.verifier_utilisation * cloud.cost_per_hour, report.verifier_utilisation * cloud.power_w
    if draft is not None:
        price += num_sessions * device.cost_per_hour
        power_w += num_sessions * report.drafter_utilisation * draft.power_w
    seconds = 1 / report.goodput if report.goodput > 0 else math.inf  # of a token, all sessions together
    return Row(
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


def _judged(rows: Sequence[Row]) -> list[Row]:
    """The rows of one class, compared with each other. Where none has goodput, none is the best."""
    losses = [row.losses for row in rows]
    front, best = pareto_of(losses), {goal: best_of(losses, goal) for goal in Goal}
    found = []
    for place, row in enumerate(rows):
        best_for = tuple(goal for goal in Goal if best[goal] == place and row.goodput > 0)
        found.append(msgspec.structs.replace(row, is_dominated=place not in front, best_for=best_for))
    return found


class Findings(Struct, frozen=True):
    """A plan's JSON file."""

    plan: str
    transport: str
    assumed: tuple[str, ...]
    seed: int
    rows: list[Row]


def write_plan(plan: Plan, rows: list[Row], folder: Path) -> None:
    """Writes plan.json and plan.csv, a line for each candidate."""
    deployment = plan.deployment
    findings = Findings(deployment.name, deployment.transport, deployment.assumed, deployment.seed, rows)
    content = msgspec.json.format(msgspec.json.encode(findings), indent=1)
    (folder / "plan.json").write_bytes(content + b"\n")
    shared = {"plan": deployment.name, "seed": deployment.seed}
    lines = [shared | msgspec.structs.asdict(row) | {"best_for": " ".join(row.best_for)} for row in rows]
    write_csv(folder / "plan.csv", lines)
