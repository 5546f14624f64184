"""The tables of a scenario, read from a TOML file. docs/scenarios.md describes the keys for users.

Invariant: a scenario that was read is complete and consistent; anything else raises BadScenario, one line that names
file and key. Keys of times end in their unit.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, ValidationError, model_validator

from awc.plugins import BadPolicy
from awc.policies.adaptive import AdaptivePolicy
from awc.policies.pipeline import PipelinePolicy
from awc.policy import WindowChoice
from awc.registry import policy_kind
from dsd_sim.scenario.demand import Closed, Workload
from dsd_sim.scenario.table import BadScenario, Bandwidth, Count, Delay, Factor, NotNegative, Positive, Share, Table
from shared.data.profiles import MachineTimes, PassTimes, StepTimes
from shared.policies.routing import ROUTERS
from shared.protocol.messages import MAX_WINDOW

DEFAULT_SEED = 1

Kind = TypeVar("Kind", bound=Table)

ALWAYS_SLIDING = {AdaptivePolicy.name, PipelinePolicy.name}  # policies that set chunk and free run themselves


class IndependentGuesses(Table):
    kind: Literal["independent"]
    rate: Share


class GuessesByPosition(Table):
    kind: Literal["by-position"]
    rates: Annotated[tuple[Share, ...], Field(min_length=1)]


class MarkovGuesses(Table):
    kind: Literal["markov"]
    easy: Share
    hard: Share
    to_hard: Share
    to_easy: Share

    @model_validator(mode="after")
    def _check(self) -> MarkovGuesses:
        if self.to_hard + self.to_easy == 0:
            raise ValueError("to_hard and to_easy must not both be 0")
        return self


class RecordedGuesses(Table):
    kind: Literal["recorded"]
    file: str  # relative to the scenario


Guesses: TypeAlias = Annotated[
    IndependentGuesses | GuessesByPosition | MarkovGuesses | RecordedGuesses, Field(discriminator="kind")
]


class Link(Table):
    """The link between a device and the cloud. Messages arrive in order, as with TCP."""

    rtt_ms: Delay  # half of it each way
    jitter_ms: Delay = 0.0  # added each way, uniform from 0
    bandwidth_mbit: Bandwidth = 0.0  # each way; 0: no limit
    stall_rate: Share = 0.0  # share of messages that are lost once and arrive stall_ms later
    stall_ms: Delay = 200.0


class LinkChange(Table):
    """New values of a Link; keys that are not given keep their values."""

    rtt_ms: Delay | None = None
    jitter_ms: Delay | None = None
    bandwidth_mbit: Bandwidth | None = None
    stall_rate: Share | None = None
    stall_ms: Delay | None = None

    @model_validator(mode="after")
    def _check(self) -> LinkChange:
        if not self.model_fields_set:
            raise ValueError(f"one of {', '.join(type(self).model_fields)} must be given")
        return self


def check_times(times: StepTimes | PassTimes | MachineTimes | None, profile: str | None) -> None:
    if (times is None) == (profile is None):
        raise ValueError("either times or profile must be given")


class Edge(Table):
    """A group of `count` equal devices. Requests are spread over devices in proportion to `weight`."""

    name: str = "edge"  # the device_tier of a trace
    count: Count
    times: StepTimes | None = None
    profile: str | None = None  # file with the times, relative to the scenario
    feed_tokens: Count = 64  # most tokens in one draft step
    link: Link
    guesses: Guesses
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> Edge:
        check_times(self.times, self.profile)
        return self


class Cloud(Table):
    """A group of `count` equal verifiers."""

    count: Count
    times: PassTimes | None = None
    profile: str | None = None  # file with the times, relative to the scenario
    draft_times: StepTimes | None = None  # of a draft model on the same device, for policies.colocated
    draft_profile: str | None = None  # file with the draft times, relative to the scenario
    noise: Share = 0.0  # a pass time varies uniformly by up to this share, up or down
    token_budget: Count = 256
    prefill_chunk: Count = 64
    kv_tokens: Count = 32768
    hop_ms: Delay = 0.0  # from gateway or link to the verifier, one way

    @model_validator(mode="after")
    def _check(self) -> Cloud:
        check_times(self.times, self.profile)
        if self.draft_times is not None and self.draft_profile is not None:
            raise ValueError("draft_times and draft_profile can't both be given")
        if self.prefill_chunk > self.token_budget:
            raise ValueError(f"prefill_chunk {self.prefill_chunk} is above token_budget {self.token_budget}")
        return self


class Machine(Table):
    """What the services take beside their models, and how models on one machine slow each other down."""

    times: MachineTimes | None = None
    profile: str | None = None  # file with the times, relative to the scenario

    @model_validator(mode="after")
    def _check(self) -> Machine:
        check_times(self.times, self.profile)
        return self


class Lookup(Table):
    """Guesses from the text that verifiers make themselves. A request has the text of a recorded prompt and answer."""

    file: str  # a recording, relative to the scenario
    tokens: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 16  # as DSD_LOOKUP_TOKENS


class Policies(Table):
    """Policies of gateways, verifiers and the window controller."""

    routing: str = "jsq"
    num_gateways: Count = 1  # each knows only its own assignments since the last heartbeats
    max_sessions: Count | None = None  # of all gateways; further requests wait
    drafting: bool = True  # false: target-only
    colocated: bool = False  # verifiers draft themselves; their guesses are those of the request's device
    windows: str = "static"  # a policy of awc.registry or module:Class; it starts with window, chunk and free_run
    window: Annotated[int, Field(ge=0, le=MAX_WINDOW)] = 8
    chunk: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 2
    free_run: bool = True
    stop_and_wait: bool = False  # the chunk is the window, and there is no free run
    batching: Literal["worth", "fifo", "lab", "tetris"] = "worth"

    @property
    def choice(self) -> WindowChoice:
        """The window at the start."""
        if self.stop_and_wait:
            return WindowChoice(self.window, max(self.window, 1), free_run=self.window == 0)
        return WindowChoice(self.window, min(self.chunk, max(self.window, 1)), self.free_run or self.window == 0)

    @model_validator(mode="after")
    def _check(self) -> Policies:
        conflicting = {"chunk", "free_run"} & self.model_fields_set
        if self.stop_and_wait and self.window == 0 and self.windows != "static":
            raise ValueError(f"stop_and_wait with windows {self.windows!r} needs a window above 0")
        if self.stop_and_wait and self.windows in ALWAYS_SLIDING:
            raise ValueError(f"windows {self.windows!r} sets chunk and free_run itself: stop_and_wait must be false")
        if self.stop_and_wait and conflicting:
            raise ValueError(f"stop_and_wait and {min(conflicting)} can't both be given")
        if self.colocated and (not self.drafting or self.windows != "static" or self.window == 0):
            raise ValueError("colocated needs drafting and a static window above 0")
        if self.routing not in ROUTERS:
            raise ValueError(f"routing must be one of {', '.join(ROUTERS)}, got {self.routing!r}")
        try:
            policy_kind(self.windows)
        except BadPolicy as error:
            raise ValueError(f"windows: {error}") from error
        if "chunk" in self.model_fields_set and self.chunk > max(self.window, 1):
            raise ValueError(f"chunk {self.chunk} is above window {self.window}")
        return self


class Change(Table):
    """New values from `at_s` on; keys that are not given keep their values."""

    at_s: NotNegative
    edge: str | None = None  # name of the devices; all devices without it
    link: LinkChange | None = None
    guesses: Guesses | None = None  # of requests that arrive from then on
    draft_slowdown: Factor | None = None  # factor of the step times at the start
    pass_slowdown: Factor | None = None  # factor of the pass times at the start, for all verifiers
    load: Factor | None = None  # factor of the request rate at the start, or of the clients of a closed loop

    @model_validator(mode="after")
    def _check(self) -> Change:
        if not self.model_fields_set - {"at_s", "edge"}:
            raise ValueError("one of link, guesses, draft_slowdown, pass_slowdown, load must be given")
        if self.edge is not None and not self.model_fields_set & {"link", "guesses", "draft_slowdown"}:
            raise ValueError("edge can't be given with only pass_slowdown or load")
        return self


class Failure(Table):
    """An outage from `at_s` on, for `for_s`."""

    part: Literal["drafters", "verifiers", "links", "controller"]
    at_s: NotNegative
    for_s: Positive
    edge: str | None = None  # drafters and links: name of the devices; all devices without it
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of these, drawn at random; at least one fails

    @model_validator(mode="after")
    def _check(self) -> Failure:
        if self.edge is not None and self.part not in ("drafters", "links"):
            raise ValueError(f"edge can't be given with part {self.part!r}")
        if self.part == "controller" and "share" in self.model_fields_set:
            raise ValueError("share can't be given with part 'controller'")
        return self


class Objective(Table):
    """Latency objective; answers above it don't count as goodput."""

    ttft_ms: Positive = 1000.0
    tpot_ms: Positive = 100.0


class Scenario(Table):
    """The file of a scenario: one simulation."""

    name: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = DEFAULT_SEED
    workload: Workload
    edge: tuple[Edge, ...] = ()
    cloud: Annotated[tuple[Cloud, ...], Field(min_length=1)]
    machine: Machine | None = None
    lookup: Lookup | None = None
    policies: Policies = Policies()
    change: tuple[Change, ...] = ()
    failure: tuple[Failure, ...] = ()
    objective: Objective = Objective()

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        if self.policies.drafting and not self.edge:
            raise ValueError("edge: with policies.drafting there must be at least one")
        names = {edge.name for edge in self.edge}
        for name in (*(change.edge for change in self.change), *(failure.edge for failure in self.failure)):
            if name is not None and name not in names:
                raise ValueError(f"a change or failure names the edge {name!r}, but no edge has that name")
        if self.policies.colocated and any(failure.part != "verifiers" for failure in self.failure):
            raise ValueError("failure: with policies.colocated, part must be 'verifiers'")
        if self.policies.colocated and any(change.link or change.draft_slowdown for change in self.change):
            raise ValueError("change: with policies.colocated, link and draft_slowdown can't be given")
        loads = [1.0, *(change.load for change in self.change if change.load is not None)]
        if loads != sorted(loads) and isinstance(self.workload, Closed):
            raise ValueError("change.load: in a closed loop the load must not fall")
        if self.policies.colocated and not all(group.draft_times or group.draft_profile for group in self.cloud):
            raise ValueError("policies.colocated: every cloud must have draft_times or draft_profile")
        if any(a.at_s > b.at_s for a, b in zip(self.change, self.change[1:], strict=False)):
            raise ValueError("change: at_s must not decrease from one change to the next")
        return self


def read_scenario(path: Path) -> Scenario:
    """Raises BadScenario for what can't be run, OSError for a file that can't be read."""
    return scenario_of(read_toml(path), path)


def read_toml(path: Path) -> dict[str, Any]:
    """The unchecked content of a file. Raises BadScenario for bad TOML, OSError for a file that can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadScenario(f"{path}: not valid TOML: {error}") from error


def scenario_of(content: dict[str, Any], path: Path) -> Scenario:
    """`path`: of the file with this content, for error messages. Raises BadScenario."""
    return parse_table(Scenario, content, path)


def parse_table(kind: type[Kind], content: Any, path: Path, table: str = "") -> Kind:
    """A validated table. `path` and `table`: its file and key, for error messages. Raises BadScenario."""
    try:
        return kind.model_validate_json(json.dumps(content, default=str))  # JSON lists are valid tuples
    except ValidationError as error:
        raise BadScenario(f"{path}: {_describe(error, content, table)}") from error


def _describe(error: ValidationError, content: Any, table: str) -> str:
    """The first error: its dotted key in the file, and what is wrong."""
    first = error.errors()[0]
    keys = [table] if table else []
    place: Any = content
    for step in first["loc"]:
        is_key = step in place if isinstance(place, dict) else isinstance(place, list) and isinstance(step, int)
        if is_key:
            place = place[step]
        if is_key or (first["type"] == "missing" and step == first["loc"][-1]):
            keys.append(str(step))
    return f"{'.'.join(keys) or 'the file'}: {first['msg'].removeprefix('Value error, ')}"
