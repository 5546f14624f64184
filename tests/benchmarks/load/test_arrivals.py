"""Open and closed loops send requests at the right times."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kstest

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.requests import ScheduledRequest
from benchmarks.load import arrivals
from benchmarks.load.arrivals import TraceArrival, closed_loop, open_loop, poisson_times, read_arrivals

PROMPTS = ["a", "b", "c"]
WAIT_S = 30.0


def answered(scheduled: ScheduledRequest) -> RequestSample:
    return RequestSample(scheduled.prompt_number, scheduled.due_at - scheduled.started_at, 0.0, 0.0, 0.0)


def test_poisson_arrivals_have_their_rate_and_exponential_gaps() -> None:
    gaps = np.diff(poisson_times(4.0, 4000, seed=1))
    assert np.mean(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert kstest(gaps, "expon", args=(0, 1 / 4)).pvalue > 0.01
    assert kstest(gaps, "expon", args=(0, 1 / 5)).pvalue < 0.01


def test_poisson_arrivals_start_at_zero_and_depend_on_the_seed() -> None:
    times = poisson_times(2.0, 20, seed=3)
    assert times[0] == 0
    assert times == poisson_times(2.0, 20, seed=3) != poisson_times(2.0, 20, seed=4)


async def test_missing_answers_do_not_delay_an_open_loop() -> None:
    everybody = asyncio.Barrier(6)

    async def wait_for_all(scheduled: ScheduledRequest) -> RequestSample:
        await everybody.wait()
        return answered(scheduled)

    async with asyncio.timeout(WAIT_S):
        samples = await open_loop(wait_for_all, PROMPTS, [0.0, 0.01, 0.01, 0.02, 0.05, 0.06])
    assert [sample.due_s for sample in samples] == pytest.approx([0.0, 0.01, 0.01, 0.02, 0.05, 0.06])
    assert [sample.prompt_number for sample in samples] == [0, 1, 2, 0, 1, 2]


async def test_an_open_loop_keeps_the_times_and_lengths_of_a_trace() -> None:
    asked: list[tuple[float, int | None]] = []

    async def note(scheduled: ScheduledRequest) -> RequestSample:
        asked.append((time.monotonic() - scheduled.due_at, scheduled.max_tokens))
        return answered(scheduled)

    await open_loop(note, PROMPTS, [TraceArrival(0.0, 5), TraceArrival(0.03, 7)])
    assert [num_tokens for _, num_tokens in asked] == [5, 7]
    assert min(late_s for late_s, _ in asked) >= 0


async def test_in_a_closed_loop_each_client_has_one_request_at_a_time() -> None:
    at_once, most = 0, 0

    async def note(scheduled: ScheduledRequest) -> RequestSample:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        return answered(scheduled)

    samples = await closed_loop(note, PROMPTS, num_clients=3, num_requests=10, think_s=0.0)
    assert most == 3
    assert sorted(sample.prompt_number for sample in samples) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


async def test_a_closed_loop_ends_at_its_time_and_clients_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each quick answer advances the clock by a second."""
    now, is_over = 0.0, asyncio.Event()
    monkeypatch.setattr(arrivals, "time", SimpleNamespace(monotonic=lambda: now))

    async def note(scheduled: ScheduledRequest) -> RequestSample:
        nonlocal now
        if scheduled.prompt_number == 0:
            await is_over.wait()
        elif (now := now + 1.0) >= 10:
            is_over.set()
        return answered(scheduled)

    prompts = [str(number) for number in range(100)]
    async with asyncio.timeout(WAIT_S):
        samples = await closed_loop(note, prompts, num_clients=2, num_requests=None, think_s=0.0, seconds=10.0)
    assert sorted(sample.due_s for sample in samples) == [0.0, *range(10)]
    assert {sample.prompt_number for sample in samples} == set(range(11)), "answers in progress are read to their end"


def test_arrivals_of_a_trace_are_sorted_by_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_ms": 50, "target_tokens": 7}\n{"arrival_ms": 0.0, "target_tokens": 3}\n')
    assert read_arrivals(path) == [TraceArrival(0.0, 3), TraceArrival(0.05, 7)]
    path.write_text('{"arrival_ms": 3600100, "target_tokens": 7}\n{"arrival_ms": 3600000, "target_tokens": 3}\n')
    assert read_arrivals(path) == [TraceArrival(0.0, 3), TraceArrival(0.1, 7)], "times count from the first"
    path.write_text('{"arrival_ms": 50}')
    with pytest.raises(ValueError, match=":1"):
        read_arrivals(path)
