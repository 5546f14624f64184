"""A measured request reports latency, tokens, fates and failures."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest

from benchmarks.harness.requests import RequestTemplate, ScheduledRequest, connected, measure_request
from benchmarks.load.arrivals import open_loop
from client.wire import AnswerOptions, DsdOptions
from tests.benchmarks.fake_gateway import serving

PROMPTS = ["a", "b", "c"]
WAIT_S = 30.0


def template(**options: object) -> RequestTemplate:
    return RequestTemplate("fake", AnswerOptions(**options))  # type: ignore[arg-type]


async def test_an_answer_is_measured_with_its_tokens_and_fates() -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure_request(gateway, template(), ScheduledRequest(2, "hello", now, now))
    assert (sample.status, sample.prompt_number, sample.num_tokens, sample.num_prompt_tokens) == ("ok", 2, 3, 7)
    assert (sample.accepted, sample.rejected, sample.late, sample.discarded) == (4, 2, 1, 5)
    assert sample.first_s is not None
    assert 0 <= sample.sent_s < sample.first_s < sample.total_s


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure_request(
            gateway, template(), ScheduledRequest(0, "hello", due_at=now - 5.0, started_at=now - 9.0)
        )
    assert sample.due_s == pytest.approx(4.0)
    assert sample.first_s is not None
    assert min(sample.sent_s, sample.first_s, sample.total_s) >= 5.0


@pytest.mark.parametrize(("prompt", "status"), [("refuse", "429"), ("break", "broken off")])
async def test_a_failed_request_has_a_status(prompt: str, status: str) -> None:
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        sample = await measure_request(gateway, template(), ScheduledRequest(0, prompt, now, now))
    assert (sample.status, sample.num_tokens) == (status, 0)


async def test_an_unreachable_gateway_is_a_status() -> None:
    async with connected("http://127.0.0.1:1") as gateway:
        now = time.monotonic()
        assert (await measure_request(gateway, template(), ScheduledRequest(0, "x", now, now))).status == "unreachable"


async def test_options_reach_the_gateway() -> None:
    options = AnswerOptions(max_tokens=9, temperature=0.0, seed=5, speculation=DsdOptions("static", 4))
    async with serving() as fake, connected(fake.url) as gateway:
        now = time.monotonic()
        await measure_request(
            gateway, RequestTemplate("fake", options, ignore_eos=True), ScheduledRequest(0, "x", now, now)
        )
        await measure_request(
            gateway, RequestTemplate("fake", options), ScheduledRequest(0, "x", now, now, max_tokens=3)
        )
    first, second = fake.bodies
    assert (first["max_tokens"], first["temperature"], first["seed"], first["ignore_eos"]) == (9, 0.0, 5, True)
    assert first["dsd"] == {"speculation": "static", "window": 4}
    assert second["max_tokens"] == 3
    assert "ignore_eos" not in second


async def test_more_requests_run_at_once_than_a_default_client_has_connections() -> None:
    async with asyncio.timeout(WAIT_S), serving() as fake, connected(fake.url) as gateway:
        fake.together = asyncio.Barrier(150)
        samples = await open_loop(partial(measure_request, gateway, template()), PROMPTS, [0.0] * 150)
    assert {sample.status for sample in samples} == {"ok"}
