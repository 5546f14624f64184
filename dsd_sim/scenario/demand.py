"""The workload tables of a scenario: when requests arrive, and how long prompts and answers are.

Invariant: a table that was read is complete and consistent. Keys of times end in their unit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from dsd_sim.scenario.table import MOST, Count, NotNegative, Positive, Share, Table


class Between(Table):
    """Uniform over the integers from `low` to `high`, both included."""

    low: Count
    high: Count

    @model_validator(mode="after")
    def _check(self) -> Between:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Histogram(Table):
    """Measured lengths: `counts[i]` of them lie in edges[i] ≤ length < edges[i + 1]."""

    edges: tuple[Count, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _check(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1 or sum(self.counts) == 0:
            raise ValueError("edges must have one entry more than counts, and a count must be above 0")
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


class MeasuredLengths(Table):
    """A JSON file with the lengths of a data set."""

    origin: str  # what was measured, and how
    prompt: Histogram
    answer: Histogram


class Lengths(Table):
    """Lengths of prompts and answers in tokens, given here or in a file."""

    prompt: Length | None = None
    answer: Length | None = None
    file: str | None = None  # MeasuredLengths, relative to the scenario
    max_tokens: Count = 4096  # longer answers are cut

    @model_validator(mode="after")
    def _check(self) -> Lengths:
        given = [self.prompt is not None, self.answer is not None]
        if any(given) if self.file is not None else not all(given):
            raise ValueError("either prompt and answer or a file with both must be given")
        return self


class Poisson(Table):
    """Requests arrive independently of each other."""

    kind: Literal["poisson"]
    rate_per_s: Positive
    num_requests: Count
    lengths: Lengths


class Bursts(Table):
    """Alternating calm and busy times of exponential length, with Poisson arrivals in both (MMPP)."""

    kind: Literal["bursts"]
    calm_per_s: Positive
    busy_per_s: Positive
    calm_s: Positive  # mean
    busy_s: Positive
    num_requests: Count
    lengths: Lengths

    @model_validator(mode="after")
    def _check(self) -> Bursts:
        calm, busy = self.calm_per_s * self.calm_s, self.busy_per_s * self.busy_s
        if max(calm, busy) > MOST or self.num_requests > MOST * (calm + busy):
            raise ValueError(
                f"a calm period has {calm:g} requests on average and a busy one {busy:g}: "
                f"at most {MOST:,} in a period, and {MOST:,} periods in all"
            )
        return self


class Diurnal(Table):
    """A Poisson process whose rate follows a sine around its mean."""

    kind: Literal["diurnal"]
    mean_per_s: Positive
    swing: Share
    period_s: Positive
    num_requests: Count
    lengths: Lengths


class Closed(Table):
    """A closed loop: each client asks, waits for the whole answer, thinks, and asks again."""

    kind: Literal["closed"]
    num_clients: Count
    think_s: NotNegative = 0.0  # mean; exponentially distributed
    num_requests: Count
    lengths: Lengths


class Trace(Table):
    """Requests of a JSONL file, with arrival_ms, prompt_tokens, target_tokens and optionally device_tier."""

    kind: Literal["trace"]
    file: str  # relative to the scenario
    speed: Positive = 1.0  # 2: the same requests in half the time


Workload: TypeAlias = Annotated[Poisson | Bursts | Diurnal | Closed | Trace, Field(discriminator="kind")]
