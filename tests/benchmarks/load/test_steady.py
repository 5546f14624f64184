"""Steady load counts the tokens of a stretch of time in which all clients are busy."""

from __future__ import annotations

import asyncio

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


async def test_clients_ask_again_until_the_counted_time_is_over() -> None:
    asked: list[tuple[int, int]] = []

    async def ask(client: int, number: int) -> RequestSample:
        asked.append((client, number))
        await asyncio.sleep(0.1)
        return answer(0.05, 0.1, 11)

    found = await steady_load(ask, 3, TIMES)
    assert {client for client, _ in asked} == {0, 1, 2}
    assert asked[0] == (0, 0)
    assert max(number for _, number in asked) > 0
    assert 0 < found.tokens_per_s < 340, "3 clients, at most 11 tokens in 0.1 s each"
    assert len(found.ttft_ms) == len(asked)


async def test_a_request_that_fails_ends_the_load() -> None:
    async def ask(client: int, number: int) -> RequestSample:
        return RequestSample(0, 0.0, 0.0, None, 0.1, status="503")

    with pytest.raises(ExceptionGroup) as found:
        await steady_load(ask, 1, TIMES)
    assert found.group_contains(AnswerFailed, match="503")
