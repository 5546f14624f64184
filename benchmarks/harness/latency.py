"""What a set of measured answers comes to: percentiles, throughput, goodput. Pure.

Invariant: failed requests are counted by what they came to and enter no percentile. Times count from when a request was
due, not from when it was sent, so that a generator that falls behind makes no figure better. Times are seconds in
samples and milliseconds in summaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

OK = "ok"
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `due_s` counts from the run's beginning, the other times from `due_s`; `first_s` None: no token."""

    prompt_number: int
    due_s: float
    sent_s: float
    first_s: float | None
    total_s: float
    status: str = OK  # or what it came to: an HTTP status, "broken off", "unreachable"
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    late: int = 0
    discarded: int = 0

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_s is None else self.first_s * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Time per token behind the first; None for answers of one token, and of one event."""
        if self.first_s is None or self.num_tokens < 2 or self.total_s <= self.first_s:
            return None
        return (self.total_s - self.first_s) * 1e3 / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """What an answer must keep to count as goodput; infinite: anything goes."""

    ttft_ms: float = float("inf")
    tpot_ms: float = float("inf")

    def is_met(self, sample: Sample) -> bool:
        """A time that an answer doesn't have is not too long."""
        if sample.status != OK:
            return False
        return (sample.ttft_ms or 0) <= self.ttft_ms and (sample.tpot_ms or 0) <= self.tpot_ms


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one figure, with linear interpolation between samples; `count` of them."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there is no value."""
        if not values:
            return None
        return cls(len(values), float(np.mean(values)), *(float(value) for value in np.percentile(values, PERCENTILES)))


@dataclass(frozen=True, slots=True)
class Summary:
    """A run."""

    duration_s: float  # from the first request due to the end of the last answer
    statuses: dict[str, int]
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    total_ms: Spread | None
    sent_late_ms: Spread | None  # how far the generator itself fell behind
    num_tokens: int
    tokens_per_s: float
    goodput_tokens_per_s: float
    goodput_share: float  # of all requests, failed ones included
    accepted: int
    rejected: int
    late: int
    discarded: int
    acceptance: float | None = field(default=None)  # (accepted + late) / (accepted + late + rejected)


def summarise(samples: Sequence[Sample], objective: Objective) -> Summary:
    """Raises ValueError without samples."""
    if not samples:
        raise ValueError("no request was made")
    good = [sample for sample in samples if objective.is_met(sample)]
    done = [sample for sample in samples if sample.status == OK]
    duration_s = max(sample.due_s + sample.total_s for sample in samples) - min(sample.due_s for sample in samples)
    right = sum(sample.accepted + sample.late for sample in done)
    wrong = sum(sample.rejected for sample in done)
    return Summary(
        duration_s=duration_s,
        statuses=dict(Counter(sample.status for sample in samples)),
        ttft_ms=Spread.of([sample.ttft_ms for sample in done if sample.ttft_ms is not None]),
        tpot_ms=Spread.of([sample.tpot_ms for sample in done if sample.tpot_ms is not None]),
        total_ms=Spread.of([sample.total_s * 1e3 for sample in done]),
        sent_late_ms=Spread.of([sample.sent_s * 1e3 for sample in samples]),
        num_tokens=sum(sample.num_tokens for sample in done),
        tokens_per_s=_per_second(done, duration_s),
        goodput_tokens_per_s=_per_second(good, duration_s),
        goodput_share=len(good) / len(samples),
        accepted=sum(sample.accepted for sample in done),
        rejected=wrong,
        late=sum(sample.late for sample in done),
        discarded=sum(sample.discarded for sample in done),
        acceptance=right / (right + wrong) if right + wrong else None,
    )


def _per_second(samples: Sequence[Sample], duration_s: float) -> float:
    return sum(sample.num_tokens for sample in samples) / duration_s if duration_s > 0 else 0.0
