"""A scenario: what a simulation is to run, read from a TOML file in which every key is known and checked.

Invariant: what was read is complete and possible; anything else raises BadScenario, one line that names file and key.
Times carry their unit in the key. The keys are described here and in docs/simulator.md.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from awc.policies.adaptive import AdaptivePolicy
from awc.policy import WindowChoice
from awc.registry import POLICIES
from dsd_sim.scenario.demand import Closed, Workload
from dsd_sim.scenario.table import BadScenario, Count, NotNegative, Part, Positive, Share
from shared.data.profiles import PassTimes, StepTimes
from shared.policies.routing import ROUTERS
from shared.protocol.messages import MAX_WINDOW


class IndependentGuesses(Part):
    kind: Literal["independent"]
    rate: Share


class GuessesByPosition(Part):
    kind: Literal["by-position"]
    rates: Annotated[tuple[Share, ...], Field(min_length=1)]


class MarkovGuesses(Part):
    kind: Literal["markov"]
    easy: Share
    hard: Share
    to_hard: Share
    to_easy: Share

    @model_validator(mode="after")
    def _check(self) -> MarkovGuesses:
        if self.to_hard + self.to_easy == 0:
            raise ValueError("to_hard and to_easy are both 0: the stretches would never change")
        return self


class RecordedGuesses(Part):
    kind: Literal["recorded"]
    file: str  # relative to the scenario


Guesses: TypeAlias = Annotated[
    IndependentGuesses | GuessesByPosition | MarkovGuesses | RecordedGuesses, Field(discriminator="kind")
]


class Link(Part):
    """From a device to the cloud; half of `rtt_ms` each way, jitter uniform from 0 on each way, in order as TCP."""

    rtt_ms: NotNegative
    jitter_ms: NotNegative = 0.0
    bandwidth_mbit: NotNegative = 0.0  # 0: no limit
    stall_rate: Share = 0.0  # of messages that are lost once and come stall_ms later
    stall_ms: NotNegative = 200.0


class LinkChange(Part):
    """What of a Link is otherwise; what is not given stays as it is."""

    rtt_ms: NotNegative | None = None
    jitter_ms: NotNegative | None = None
    bandwidth_mbit: NotNegative | None = None
    stall_rate: Share | None = None
    stall_ms: NotNegative | None = None

    @model_validator(mode="after")
    def _check(self) -> LinkChange:
        if not self.model_fields_set:
            raise ValueError(f"nothing changes: one of {', '.join(type(self).model_fields)} must be given")
        return self


def _check_times(part: Edge | Cloud) -> None:
    if (part.times is None) == (part.profile is None):
        raise ValueError("either times or a profile must be given")


class Edge(Part):
    """`count` devices alike. Requests go to devices in proportion to `weight`."""

    name: str = "edge"  # the device_tier of a trace
    count: Count
    times: StepTimes | None = None
    profile: str | None = None  # a file with them, relative to the scenario
    feed_tokens: Count = 64  # in one draft step at most
    link: Link
    guesses: Guesses
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> Edge:
        _check_times(self)
        return self


class Cloud(Part):
    """`count` verifiers alike."""

    count: Count
    times: PassTimes | None = None
    profile: str | None = None  # a file with them, relative to the scenario
    draft_times: StepTimes | None = None  # of a draft model beside the target, for policies.colocated
    draft_profile: str | None = None  # a file with them, relative to the scenario
    noise: Share = 0.0  # a pass takes up to this share longer or shorter
    token_budget: Count = 256
    prefill_chunk: Count = 64
    kv_tokens: Count = 32768
    hop_ms: NotNegative = 0.0  # to it from gateway and links, one way

    @model_validator(mode="after")
    def _check(self) -> Cloud:
        _check_times(self)
        if self.draft_times is not None and self.draft_profile is not None:
            raise ValueError("draft_times and draft_profile can't both be given")
        if self.prefill_chunk > self.token_budget:
            raise ValueError(f"prefill_chunk {self.prefill_chunk} is above token_budget {self.token_budget}")
        return self


class Policies(Part):
    """Who gets a request, and how far drafters run ahead."""

    routing: str = "jsq"
    max_sessions: Count | None = None  # that gateways have at once; other requests wait their turn
    drafting: bool = True  # false: target-only
    colocated: bool = False  # the verifiers draft themselves, guesses that the request's device would make
    windows: str = "static"  # a policy of awc.registry, which starts with the values below
    window: Annotated[int, Field(ge=0, le=MAX_WINDOW)] = 8
    chunk: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 2
    free_run: bool = True
    stop_and_wait: bool = False  # the chunk is the window, and there is no free run
    batching: Literal["worth", "fifo", "lab", "tetris"] = "worth"

    @property
    def choice(self) -> WindowChoice:
        """What holds at the start."""
        if self.stop_and_wait:
            return WindowChoice(self.window, max(self.window, 1), free_run=self.window == 0)
        return WindowChoice(self.window, min(self.chunk, max(self.window, 1)), self.free_run or self.window == 0)

    @model_validator(mode="after")
    def _check(self) -> Policies:
        said = {"chunk", "free_run"} & self.model_fields_set
        if self.stop_and_wait and self.window == 0 and self.windows != "static":
            raise ValueError(f"stop_and_wait needs a window above 0 for {self.windows} to start with")
        if self.stop_and_wait and self.windows == AdaptivePolicy.name:
            raise ValueError(f"stop_and_wait is not for {self.windows}, which chooses chunk and free run itself")
        if self.stop_and_wait and said:
            raise ValueError(f"stop_and_wait and {min(said)} can't both be given")
        if self.colocated and (not self.drafting or self.windows != "static" or self.window == 0):
            raise ValueError("colocated needs drafting, and a static window above 0")
        if self.routing not in ROUTERS:
            raise ValueError(f"routing {self.routing!r} must be one of {', '.join(ROUTERS)}")
        if self.windows not in POLICIES:
            raise ValueError(f"windows {self.windows!r} must be one of {', '.join(POLICIES)}")
        if "chunk" in self.model_fields_set and self.chunk > max(self.window, 1):
            raise ValueError(f"chunk {self.chunk} is above window {self.window}")
        return self


class Change(Part):
    """From `at_s` on something is otherwise, until another change. What is not given stays as it is."""

    at_s: NotNegative
    edge: str | None = None  # the devices of this name; all without it
    link: LinkChange | None = None
    guesses: Guesses | None = None  # of requests that come from then on
    draft_slowdown: Positive | None = None  # times what a draft step takes in the beginning
    pass_slowdown: Positive | None = None  # likewise a verify pass, of all verifiers
    load: Positive | None = None  # times as many requests as in the beginning, or clients of a closed loop

    @model_validator(mode="after")
    def _check(self) -> Change:
        if not self.model_fields_set - {"at_s", "edge"}:
            raise ValueError("nothing changes: one of link, guesses, draft_slowdown, pass_slowdown, load must be given")
        if self.edge is not None and not self.model_fields_set & {"link", "guesses", "draft_slowdown"}:
            raise ValueError("edge means nothing to pass_slowdown and load")
        return self


class Failure(Part):
    """From `at_s` on, for `for_s`, something does not work."""

    part: Literal["drafters", "verifiers", "links", "controller"]
    at_s: NotNegative
    for_s: Positive
    edge: str | None = None  # drafters and links of the devices of this name; all without it
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of them, drawn at random, at least one

    @model_validator(mode="after")
    def _check(self) -> Failure:
        if self.edge is not None and self.part not in ("drafters", "links"):
            raise ValueError(f"edge means nothing to {self.part}")
        if self.part == "controller" and "share" in self.model_fields_set:
            raise ValueError("there is one controller: share means nothing to it")
        return self


class Objective(Part):
    """What an answer must keep to count as goodput."""

    ttft_ms: Positive = 1000.0
    tpot_ms: Positive = 100.0


class Scenario(Part):
    """One simulation."""

    name: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    workload: Workload
    edge: tuple[Edge, ...] = ()
    cloud: Annotated[tuple[Cloud, ...], Field(min_length=1)]
    policies: Policies = Policies()
    change: tuple[Change, ...] = ()
    failure: tuple[Failure, ...] = ()
    objective: Objective = Objective()

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        if self.policies.drafting and not self.edge:
            raise ValueError("edge is empty: with policies.drafting there must be devices")
        names = {edge.name for edge in self.edge}
        for name in (*(change.edge for change in self.change), *(failure.edge for failure in self.failure)):
            if name is not None and name not in names:
                raise ValueError(f"a change or failure names the edge {name!r}, and none has that name")
        if self.policies.colocated and any(failure.part != "verifiers" for failure in self.failure):
            raise ValueError("failure: with policies.colocated only verifiers can fail, as nothing else takes part")
        if self.policies.colocated and any(change.link or change.draft_slowdown for change in self.change):
            raise ValueError("change: with policies.colocated no link and no drafter takes part")
        loads = [1.0, *(change.load for change in self.change if change.load is not None)]
        if loads != sorted(loads) and isinstance(self.workload, Closed):
            raise ValueError("change.load: clients of a closed loop join it and stay, so it can't fall")
        if self.policies.colocated and not all(part.draft_times or part.draft_profile for part in self.cloud):
            raise ValueError("policies.colocated: every cloud must have draft_times or a draft_profile")
        if any(a.at_s > b.at_s for a, b in zip(self.change, self.change[1:], strict=False)):
            raise ValueError("change: the changes must be in the order of their at_s")
        return self


def read_scenario(path: Path) -> Scenario:
    """Raises BadScenario for what can't be run, OSError for a file that can't be read."""
    return scenario_of(read_toml(path), path)


def read_toml(path: Path) -> dict[str, Any]:
    """A file's content, not checked yet. Raises BadScenario where it is no TOML, OSError where it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadScenario(f"{path}: no TOML: {error}") from error


def scenario_of(content: dict[str, Any], path: Path) -> Scenario:
    """`path`: of the file with this content, for messages. Raises BadScenario."""
    try:
        return Scenario.model_validate_json(json.dumps(content, default=str))  # lists are tuples there
    except ValidationError as error:
        raise BadScenario(f"{path}: {told_error(error, content)}") from error


def told_error(error: ValidationError, content: Any, table: str = "") -> str:
    """The first thing that is wrong: its key as it stands in the file, and what it should be. `table`: the key of the
    table that the content is of."""
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
