"""What is asked of a fleet: when requests come and how long they are, as tables of a scenario.

Invariant: what was read is complete and possible. Times carry their unit in the key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dsd_sim.scenario.table import Count, NotNegative, Part, Positive, Share


class Between(Part):
    """Any whole number from `low` to `high`, all alike."""

    low: Count
    high: Count

    @model_validator(mode="after")
    def _check(self) -> Between:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Histogram(Part):
    """Lengths as they were measured: `counts[i]` of them from edges[i] up to, and without, edges[i + 1]."""

    edges: tuple[Count, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _check(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1 or sum(self.counts) == 0:
            raise ValueError("edges must be one more than counts, and a count above 0")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must increase")
        return self


def _kind_of_length(value: Any) -> str:
    if isinstance(value, dict):
        return "histogram" if "edges" in value or "counts" in value else "between"
    return "number"


Length: TypeAlias = Annotated[
    Annotated[Count, Tag("number")] | Annotated[Between, Tag("between")] | Annotated[Histogram, Tag("histogram")],
    Discriminator(_kind_of_length),
]


class MeasuredLengths(Part):
    """A file of lengths."""

    origin: str  # what was measured, and how
    prompt: Histogram
    answer: Histogram


class Lengths(Part):
    """Tokens of prompts and of answers, either here or in a file."""

    prompt: Length | None = None
    answer: Length | None = None
    file: str | None = None  # with histograms of both, relative to the scenario
    max_tokens: Count = 4096  # that a request reserves room for; longer answers are cut

    @model_validator(mode="after")
    def _check(self) -> Lengths:
        given = [self.prompt is not None, self.answer is not None]
        if any(given) if self.file is not None else not all(given):
            raise ValueError("either prompt and answer or a file with both must be given")
        return self


class Poisson(Part):
    """Requests come independently of each other."""

    kind: Literal["poisson"]
    rate_per_s: Positive
    num_requests: Count
    lengths: Lengths


class Bursts(Part):
    """Calm and busy times in turn, each of exponential length, with Poisson arrivals in both (MMPP)."""

    kind: Literal["bursts"]
    calm_per_s: Positive
    busy_per_s: Positive
    calm_s: Positive  # mean
    busy_s: Positive
    num_requests: Count
    lengths: Lengths


class Diurnal(Part):
    """A Poisson process whose rate swings as a sine around its mean."""

    kind: Literal["diurnal"]
    mean_per_s: Positive
    swing: Share
    period_s: Positive
    num_requests: Count
    lengths: Lengths


class Closed(Part):
    """Clients that each ask, wait for the end of the answer, think, and ask again."""

    kind: Literal["closed"]
    num_clients: Count
    think_s: NotNegative = 0.0  # mean of an exponential time
    num_requests: Count
    lengths: Lengths


class Trace(Part):
    """Requests of a JSONL file: arrival_ms, prompt_tokens, target_tokens, device_tier."""

    kind: Literal["trace"]
    file: str  # relative to the scenario
    speed: Positive = 1.0  # 2: twice as many in the same time


Workload: TypeAlias = Annotated[Poisson | Bursts | Diurnal | Closed | Trace, Field(discriminator="kind")]
