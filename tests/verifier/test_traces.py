"""The spans of a verifier: one for each session whose gateway names a span."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.protocol.messages import Close, Open, Opened
from tests.fakes import answer
from tests.otlp import Receiver, Trace, receiving, share, tracing_to
from tests.verifier.conftest import PROMPT, Start, World

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def traced(start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    tracing = tracing_to(monkeypatch, "verifier", receiver.url)
    async with start(tracing=tracing, kv_tokens=256) as world:
        yield world
    await asyncio.to_thread(tracing.close)


async def close(world: World, request: Open) -> None:
    await world.send(world.gateway, Close(request.session_id, request.term))


async def trace_of(world: World, receiver: Receiver, request: Open) -> Trace:
    await close(world, request)
    return await receiver.trace("verifier verify")


async def test_a_session_is_queued_then_prefill_then_decode_with_its_counts(traced: World, receiver: Receiver) -> None:
    request = await traced.open(max_tokens=12, traceparent=TRACEPARENT)
    await traced.draft(request, 1, answer(PROMPT, 12)[1:5])
    text = await traced.text(request)
    trace = await trace_of(traced, receiver, request)
    verify = trace.one("verify")
    assert (verify.trace_id, verify.parent_id, verify.failed) == (TRACE, PARENT, False)
    assert [span.name for span in trace.children(verify)] == ["queued", "prefill", "decode"]
    assert share(verify, trace.leaves("verifier")) > 0.999
    told = verify.attributes
    assert told["gen_ai.usage.output_tokens"] == len(text) == 12
    assert told["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    fates = {fate: told[f"dsd.guesses.{fate}"] for fate in ("accepted", "rejected", "late", "discarded")}
    assert fates == traced.fates()
    assert told["dsd.model.steps"] >= told["dsd.passes"] > 0
    assert told["dsd.model.fed_tokens"] == traced.count("verifier_fed_tokens")


async def test_the_span_ends_with_the_answer_and_not_with_its_close(traced: World, receiver: Receiver) -> None:
    request = await traced.open(max_tokens=4, traceparent=TRACEPARENT)
    await traced.text(request)
    later = await traced.open(max_tokens=40)
    await traced.text(later)
    trace = await trace_of(traced, receiver, request)
    assert trace.one("verify").end == trace.one("decode").end


async def test_another_term_goes_on_in_the_same_span(traced: World, receiver: Receiver) -> None:
    traced.model.gate.shut()
    request = await traced.open(max_tokens=12, traceparent=TRACEPARENT)
    again = await traced.open(
        max_tokens=12, term=2, session_id=request.session_id, drafted=False, traceparent=TRACEPARENT
    )
    traced.model.gate.open()
    await traced.text(again)
    trace = await trace_of(traced, receiver, again)
    assert trace.one("verify").attributes["dsd.term"] == 2
    assert len(trace.spans) == 4


async def test_a_wait_for_kv_cache_is_seen(traced: World, receiver: Receiver) -> None:
    first = await traced.open(PROMPT * 60, max_tokens=40)
    second = await traced.open(PROMPT * 60, max_tokens=40, seed=3, traceparent=TRACEPARENT)
    await traced.text(first)
    await close(traced, first)
    await traced.gateway.find(Opened, lambda told: told.session_id == second.session_id and told.has_room)
    await traced.text(second)
    trace = await trace_of(traced, receiver, second)
    assert [event.name for event in trace.one("verify").events] == ["waits for KV cache", "has KV cache"]


async def test_a_session_that_fails_says_why(traced: World, receiver: Receiver) -> None:
    traced.model.poison = 9
    await traced.open((9,), traceparent=TRACEPARENT)
    trace = await receiver.trace("verifier verify")
    assert trace.one("verify").attributes["error.type"] == "internal"
    assert trace.one("verify").failed


async def test_a_session_that_its_gateway_ends_early_is_no_failure(traced: World, receiver: Receiver) -> None:
    traced.model.gate.shut()
    request = await traced.open(traceparent=TRACEPARENT)
    trace = await trace_of(traced, receiver, request)
    traced.model.gate.open()
    assert not trace.one("verify").failed
    assert [span.name for span in trace.children(trace.one("verify"))] == ["queued"]


async def test_without_a_parent_nothing_is_exported(traced: World, receiver: Receiver) -> None:
    for traceparent in (None, f"00-{'0' * 32}-{PARENT}-01"):
        request = await traced.open(max_tokens=4, traceparent=traceparent)
        await traced.text(request)
        await close(traced, request)
    request = await traced.open(max_tokens=4, traceparent=TRACEPARENT)
    await traced.text(request)
    await trace_of(traced, receiver, request)
    assert {span.trace_id for span in receiver.spans} == {TRACE}
