"""Percentiles, throughput and goodput of measured requests. Pure.

Invariant: failed requests are counted by status and enter no percentile. Latency counts from when a request was due,
not from when it was sent, so a load generator that falls behind improves no figure. Samples hold seconds, summaries
milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OK = "ok"
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One request. `due_s` counts from the start of the run, the other times from `due_s`."""

    prompt_number: int
    due_s: float
    sent_s: float
    first_s: float | None  # first token; None: none came
    total_s: float
    status: str = OK  # or an HTTP status, "broken off", "unreachable"
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
        """Time per token after the first; None for answers of one token or of one event."""
        if self.first_s is None or self.num_tokens < 2 or self.total_s <= self.first_s:
            return None
        return (self.total_s - self.first_s) * 1e3 / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class LatencyObjective:
    """Latency limits for goodput; infinite: no limit."""

    ttft_ms: float = float("inf")
    tpot_ms: float = float("inf")

    def is_met(self, sample: RequestSample) -> bool:
        """A missing time meets the objective."""
        if sample.status != OK:
            return False
        return (sample.ttft_ms or 0) <= self.ttft_ms and (sample.tpot_ms or 0) <= self.tpot_ms


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of one figure over `count` samples, with linear interpolation."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """None without values."""
        if not values:
            return None
        return cls(len(values), float(np.mean(values)), *(float(value) for value in np.percentile(values, PERCENTILES)))


@dataclass(frozen=True, slots=True)
class RunSummary:
    """All requests of a run."""

    duration_s: float  # from when the first request was due to the end of the last answer
    statuses: dict[str, int]
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    total_ms: Distribution | None
    sent_late_ms: Distribution | None  # delay of the load generator itself
    num_tokens: int
    tokens_per_s: float
    goodput_tokens_per_s: float
    goodput_share: float  # share of all requests, failed ones included
    accepted: int
    rejected: int
    late: int
    discarded: int
    acceptance: float | None


def summarise(samples: Sequence[RequestSample], objective: LatencyObjective) -> RunSummary:
    """Raises ValueError without samples."""
    if not samples:
        raise ValueError("cannot summarise a run without requests")
    good = [sample for sample in samples if objective.is_met(sample)]
    done = [sample for sample in samples if sample.status == OK]
    duration_s = max(sample.due_s + sample.total_s for sample in samples) - min(sample.due_s for sample in samples)
    return RunSummary(
        duration_s=duration_s,
        statuses=dict(Counter(sample.status for sample in samples)),
        ttft_ms=Distribution.of([sample.ttft_ms for sample in done if sample.ttft_ms is not None]),
        tpot_ms=Distribution.of([sample.tpot_ms for sample in done if sample.tpot_ms is not None]),
        total_ms=Distribution.of([sample.total_s * 1e3 for sample in done]),
        sent_late_ms=Distribution.of([sample.sent_s * 1e3 for sample in samples]),
        num_tokens=sum(sample.num_tokens for sample in done),
        tokens_per_s=_per_second(done, duration_s),
        goodput_tokens_per_s=_per_second(good, duration_s),
        goodput_share=len(good) / len(samples),
        accepted=sum(sample.accepted for sample in done),
        rejected=sum(sample.rejected for sample in done),
        late=sum(sample.late for sample in done),
        discarded=sum(sample.discarded for sample in done),
        acceptance=acceptance_of(done),
    )


def acceptance_of(samples: Sequence[RequestSample]) -> float | None:
    """(accepted + late) / (accepted + late + rejected); None without such guesses."""
    right = sum(sample.accepted + sample.late for sample in samples)
    compared = right + sum(sample.rejected for sample in samples)
    return right / compared if compared else None


def guesses_per_token(samples: Sequence[RequestSample]) -> float:
    """Guesses of whatever fate / tokens."""
    guesses = sum(sample.accepted + sample.rejected + sample.late + sample.discarded for sample in samples)
    return guesses / max(sum(sample.num_tokens for sample in samples), 1)


def _per_second(samples: Sequence[RequestSample], duration_s: float) -> float:
    return sum(sample.num_tokens for sample in samples) / duration_s if duration_s > 0 else 0.0
