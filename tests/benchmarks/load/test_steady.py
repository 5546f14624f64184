"""Steady load counts the tokens of a stretch of time in which all clients are busy."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.harness.latency import RequestSample
from benchmarks.load.steady import AnswerFailed, SteadyTimes, steady_load, tokens_between

TIMES = SteadyTimes(ramp_s=0.2, counted_s=0.6)


def answer(first_s: float, total_s: float, num_tokens: int) -> RequestSample:
    return RequestSample(0, 0.0, 0.0, first_s, total_s, num_tokens=num_tokens)


def test_tokens_behind_the_first_count_by_the_share_of_their_time() -> None:
    whole = answer(1.0, 11.0, 101)
    assert tokens_between([(0.0, whole)], 0.0, 20.0) == pytest.approx(101)
    assert tokens_between([(0.0, whole)], 6.0, 20.0) == pytest.approx(50)
    assert tokens_between([(0.0, whole)], 0.0, 3.5) == pytest.approx(1 + 25)
    assert tokens_between([(0.0, whole), (100.0, whole)], 0.0, 20.0) == pytest.approx(101)
    assert tokens_between([(5.0, answer(0.2, 0.2, 1))], 5.0, 6.0) == 1


async def test_clients_join_one_after_the_other_and_ask_again_until_the_counted_time_is_over() -> None:
    began, joined, num_late, num_inside = time.monotonic(), {}, 0, 0

    async def ask(client: int, number: int) -> RequestSample:
        nonlocal num_late, num_inside
        sent = time.monotonic()
        joined.setdefault(client, sent - began)
        await asyncio.sleep(0.1)
        took = time.monotonic() - sent
        is_late = sent - began >= joined[0] + TIMES.ramp_s  # begun in the counted time
        num_late += is_late
        num_inside += is_late and sent + took - began <= TIMES.ramp_s + TIMES.counted_s
        return answer(took / 1e6, took, 101)

    found = await steady_load(ask, 3, 101, TIMES)
    assert list(joined) == [0, 1, 2]
    assert [joined[client] >= client * TIMES.ramp_s / 3 for client in range(3)] == [True] * 3
    assert num_inside * 101 <= found.tokens_per_s * TIMES.counted_s + 1e-6, "all clients count"
    assert found.tokens_per_s <= 3 * 1000 * 1.05, "100 tokens behind the first in at least 0.1 s"
    assert len(found.ttft_ms) >= num_late


async def test_a_request_that_fails_ends_the_load() -> None:
    async def ask(client: int, number: int) -> RequestSample:
        return RequestSample(0, 0.0, 0.0, None, 0.1, status="503")

    async def ask_less(client: int, number: int) -> RequestSample:
        return answer(0.1, 0.2, 10)

    for asked, told in ((ask, "503"), (ask_less, "10 tokens")):
        with pytest.raises(ExceptionGroup) as found:
            await steady_load(asked, 1, 11, TIMES)
        assert found.group_contains(AnswerFailed, match=told)
