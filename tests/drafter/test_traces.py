"""The spans of a drafter: one for each session whose gateway names a span."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.protocol.messages import Close
from tests.drafter.conftest import PROMPT, TEXT, Start, World
from tests.otlp import Receiver, receiving, share, tracing_to

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def traced(start: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    tracing = tracing_to(monkeypatch, "drafter", receiver.url)
    async with start(tracing=tracing) as world:
        yield world
    await asyncio.to_thread(tracing.close)


async def test_a_session_is_queued_then_prefill_then_decode_with_its_counts(traced: World, receiver: Receiver) -> None:
    request = await traced.speculate(traceparent=TRACEPARENT)
    await traced.drafted(request, 0, 2)
    await traced.tell(traced.verifier, traced.verdict(request, 0, TEXT[:2], accepted=2))
    await traced.drafted(request, 2, 2)
    await traced.tell(traced.gateway, Close(request.session_id, 1))
    trace = await receiver.trace("drafter draft")
    draft = trace.one("draft")
    assert (draft.trace_id, draft.parent_id, draft.failed) == (TRACE, PARENT, False)
    assert [span.name for span in trace.children(draft)] == ["queued", "prefill", "decode"]
    assert share(draft, trace.leaves("drafter")) > 0.999
    told = draft.attributes
    fates = {fate: told[f"dsd.guesses.{fate}"] for fate in ("accepted", "rejected", "late", "discarded")}
    assert fates == traced.fates()
    assert told["dsd.guesses.drafted"] == sum(fates.values()) == traced.count("drafter_drafted_tokens")
    assert told["dsd.guesses.accepted"] == 2
    assert told["dsd.model.fed_tokens"] >= len(PROMPT)
    assert told["dsd.verifier"] == traced.verifier.instance_id


async def test_a_session_that_ends_while_its_prompt_is_computed_has_no_decode(
    traced: World, receiver: Receiver
) -> None:
    traced.model.gate.shut()
    request = await traced.speculate(traceparent=TRACEPARENT)
    await traced.tell(traced.gateway, Close(request.session_id, 1))
    trace = await receiver.trace("drafter draft")
    assert [span.name for span in trace.children(trace.one("draft"))] == ["queued"]
    traced.model.gate.open()


async def test_without_a_parent_nothing_is_exported(traced: World, receiver: Receiver) -> None:
    plain = await traced.speculate()
    await traced.drafted(plain, 0, 2)
    await traced.tell(traced.gateway, Close(plain.session_id, 1))
    request = await traced.speculate(traceparent=TRACEPARENT)
    await traced.drafted(request, 0, 2)
    await traced.tell(traced.gateway, Close(request.session_id, 1))
    await receiver.trace("drafter draft")
    assert len(receiver.traces) == 1
