"""Percentiles, throughput and goodput of samples."""

from __future__ import annotations

import pytest

from benchmarks.harness.latency import Distribution, LatencyObjective, RequestSample, summarise


def sample(**changes: object) -> RequestSample:
    """First token after 0.1 s, ten more 10 ms apart."""
    fields: dict[str, object] = {
        "prompt_number": 0,
        "due_s": 0.0,
        "sent_s": 0.0,
        "first_s": 0.1,
        "total_s": 0.2,
        "num_tokens": 11,
    }
    return RequestSample(**(fields | changes))  # type: ignore[arg-type]


def test_percentiles_are_those_of_known_values() -> None:
    spread = Distribution.of([float(value) for value in range(1, 102)])
    assert spread == Distribution(101, 51, 51, 91, 96, 100)
    assert Distribution.of([]) is None


def test_time_per_token_counts_the_tokens_after_the_first() -> None:
    assert sample().ttft_ms == pytest.approx(100)
    assert sample().tpot_ms == pytest.approx(10)
    assert sample(num_tokens=1).tpot_ms is None
    assert sample(first_s=None, num_tokens=0).ttft_ms is None
    assert sample(total_s=0.1).tpot_ms is None


def test_throughput_is_over_the_time_from_the_first_due_to_the_last_end() -> None:
    summary = summarise([sample(due_s=1.0), sample(due_s=1.5, total_s=0.7)], LatencyObjective())
    assert summary.duration_s == pytest.approx(1.2)
    assert summary.tokens_per_s == pytest.approx(22 / 1.2)
    assert summary.goodput_tokens_per_s == summary.tokens_per_s


def test_only_answers_within_the_objective_are_goodput() -> None:
    samples = [sample(), sample(first_s=0.05, total_s=0.35), sample(first_s=0.01, total_s=0.1), sample(status="503")]
    summary = summarise(samples, LatencyObjective(ttft_ms=60, tpot_ms=20))
    assert summary.goodput_share == 1 / 4
    assert summary.goodput_tokens_per_s == pytest.approx(11 / 0.35)
    assert summary.tokens_per_s == pytest.approx(33 / 0.35)


def test_failed_requests_are_counted_by_status_and_enter_no_percentile() -> None:
    samples = [sample(), sample(status="429", first_s=None, total_s=9.0, num_tokens=0), sample(status="broken off")]
    summary = summarise(samples, LatencyObjective())
    assert summary.statuses == {"ok": 1, "429": 1, "broken off": 1}
    assert summary.total_ms is not None
    assert summary.total_ms.count == 1
    assert summary.total_ms.p99 == pytest.approx(200)
    assert summary.num_tokens == 11
    assert summary.goodput_share == 1 / 3


def test_fates_sum_up_and_late_guesses_count_as_right() -> None:
    samples = [sample(accepted=6, rejected=2, late=1, discarded=3), sample(accepted=1)]
    summary = summarise(samples, LatencyObjective())
    assert (summary.accepted, summary.rejected, summary.late, summary.discarded) == (7, 2, 1, 3)
    assert summary.acceptance == pytest.approx(8 / 10)
    assert summarise([sample()], LatencyObjective()).acceptance is None


def test_a_run_without_requests_has_no_summary() -> None:
    with pytest.raises(ValueError, match="without requests"):
        summarise([], LatencyObjective())
