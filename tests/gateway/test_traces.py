"""The trace of a request at the gateway: its spans, its parent, what is sampled, and what no span holds."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from services.gateway import traces
from shared.protocol.messages import Open, Speculate
from shared.runtime import otel, tracing
from tests.gateway.conftest import World, a_world, until
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat
from tests.gateway.session.test_failover import LONG, PASS_S, ask
from tests.otlp import Receiver, receiving, share, tracing_to

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
OURS = {str(Path(module.__file__)) for module in (traces, tracing, otel)}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def traced_world(
    folder: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    """A gateway that traces, by default each request."""
    tracing = tracing_to(monkeypatch, "gateway", receiver.url, **getattr(request, "param", {}))
    async with a_world(folder, tracing) as world:
        yield world
    await asyncio.to_thread(tracing.close)


def sampled_by(sampler: str, arg: str = "") -> pytest.MarkDecorator:
    variables = {"TRACES_SAMPLER": sampler, "TRACES_SAMPLER_ARG": arg}
    return pytest.mark.parametrize("traced_world", [variables], indirect=True)


async def answered(world: World, path: str = CHAT, headers: dict[str, str] | None = None, **options: Any) -> Any:
    body = chat(**options) if path == CHAT else options
    async with world.client.post(path, json=body, headers=headers) as response:
        return await response.json()


async def test_the_spans_of_a_request_fill_its_time_and_count_its_tokens(
    traced_world: World, receiver: Receiver
) -> None:
    world = traced_world
    await world.verifier()
    await world.drafter()
    body = await answered(world, seed=7, max_tokens=9, temperature=0.5)
    trace = await receiver.trace("gateway chat tiny")
    root, usage = trace.root, body["usage"]
    assert [span.name for span in trace.children(root)] == ["read", "tokenise", "queued", "session", "send"]
    session = trace.one("session")
    assert [span.name for span in trace.children(session)] == ["prefill", "decode"]
    assert share(root, trace.leaves("gateway")) > 0.95
    asked = {"gen_ai.request.seed": 7, "gen_ai.request.max_tokens": 9, "gen_ai.request.temperature": 0.5}
    counted = {
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }
    assert asked.items() | counted.items() <= root.attributes.items()
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 < root.attributes["gen_ai.response.time_to_first_chunk"] < root.ns / 1e9
    assert session.attributes["dsd.guesses.accepted"] == body["dsd"]["accepted"] > 0
    assert session.attributes["dsd.passes"] == body["dsd"]["num_verdicts"]
    assert not any(span.failed for span in trace.spans)


async def test_the_client_s_span_is_the_parent_and_that_of_the_session_goes_to_its_peers(
    traced_world: World, receiver: Receiver
) -> None:
    verifier, drafter = await traced_world.verifier(), await traced_world.drafter()
    await answered(traced_world, headers={"traceparent": SAMPLED})
    trace = await receiver.trace("gateway chat tiny")
    assert (trace.root.trace_id, trace.root.parent_id) == (TRACE, CALLER)
    (opened, *_), (asked, *_) = verifier.of(Open), drafter.of(Speculate)
    assert opened.traceparent == asked.traceparent == f"00-{TRACE}-{trace.one('session').span_id}-01"


@pytest.mark.parametrize("header", ["", "00-zz", f"00-{'0' * 32}-{CALLER}-01", f"{SAMPLED}, {SAMPLED}", SAMPLED[:-3]])
async def test_a_header_that_is_no_trace_context_begins_a_new_trace(
    traced_world: World, receiver: Receiver, header: str
) -> None:
    await traced_world.verifier()
    await answered(traced_world, headers={"traceparent": header})
    trace = await receiver.trace("gateway chat tiny")
    assert trace.root.parent_id == ""
    assert trace.root.trace_id != TRACE


async def test_a_client_that_does_not_sample_its_request_has_nothing_exported_of_it(
    traced_world: World, receiver: Receiver
) -> None:
    verifier, drafter = await traced_world.verifier(), await traced_world.drafter()
    await answered(traced_world, headers={"traceparent": UNSAMPLED})
    assert {opened.traceparent for opened in verifier.of(Open)} == {None}
    assert {asked.traceparent for asked in drafter.of(Speculate)} == {None}
    await answered(traced_world, headers={"traceparent": SAMPLED.replace("4b", "5b")})
    await receiver.trace("gateway chat tiny")
    assert {span.trace_id[:2] for span in receiver.spans} == {"5b"}


@sampled_by("parentbased_traceidratio", "0")
async def test_a_ratio_of_zero_samples_what_a_client_samples_and_nothing_else(
    traced_world: World, receiver: Receiver
) -> None:
    await traced_world.verifier()
    for _ in range(5):
        await answered(traced_world)
    await answered(traced_world, headers={"traceparent": SAMPLED})
    await receiver.trace("gateway chat tiny")
    assert {span.trace_id for span in receiver.spans} == {TRACE}


@sampled_by("always_off")
async def test_a_sampler_that_ignores_parents_lets_no_client_ask_for_traces(
    traced_world: World, receiver: Receiver
) -> None:
    verifier = await traced_world.verifier()
    await answered(traced_world, headers={"traceparent": SAMPLED})
    assert {opened.traceparent for opened in verifier.of(Open)} == {None}


async def test_each_choice_is_a_session_of_its_own(traced_world: World, receiver: Receiver) -> None:
    verifier = await traced_world.verifier()
    body = await answered(traced_world, n=3)
    trace = await receiver.trace("gateway chat tiny")
    sessions = sorted(trace.named("session"), key=lambda span: span.attributes["dsd.choice"])
    assert [span.attributes["dsd.choice"] for span in sessions] == [0, 1, 2]
    assert {span.attributes["dsd.session.id"] for span in sessions} == {each.session_id for each in verifier.of(Open)}
    assert {each.traceparent for each in verifier.of(Open)} == {f"00-{s.trace_id}-{s.span_id}-01" for s in sessions}
    output = [span.attributes["gen_ai.usage.output_tokens"] for span in sessions]
    assert sum(output) == trace.root.attributes["gen_ai.usage.output_tokens"] == body["usage"]["completion_tokens"]


async def test_a_failover_is_a_span_between_the_tokens_of_two_verifiers(
    traced_world: World, receiver: Receiver
) -> None:
    world = traced_world
    world.answer = LONG
    first = await world.verifier("first", PASS_S)
    stream = await ask(world)
    await stream.read(10)
    second = await world.verifier("second", PASS_S)
    await first.kill()
    await stream.read()
    trace = await receiver.trace("gateway chat tiny", "gateway failover")
    failover, decode, session = trace.one("failover"), trace.one("decode"), trace.one("session")
    lost, found = failover.attributes["dsd.verifier.lost"], failover.attributes["dsd.verifier"]
    assert (lost, found) == (first.instance_id, second.instance_id)
    assert failover.parent_id == decode.parent_id == session.span_id
    assert decode.begin < failover.begin < failover.end < decode.end
    assert session.attributes["dsd.failovers"] == 1
    assert share(trace.root, trace.leaves("gateway")) > 0.95
    assert {each.traceparent for each in second.of(Open)} == {f"00-{session.trace_id}-{session.span_id}-01"}


async def test_another_drafter_is_an_event(traced_world: World, receiver: Receiver) -> None:
    world = traced_world
    world.answer = LONG
    await world.verifier("only", PASS_S)
    drafter = await world.drafter("one", promised_s=0.3)
    stream = await ask(world)
    await stream.read(10)
    other = await world.drafter("two")
    await drafter.kill()
    await stream.read()
    trace = await receiver.trace("gateway chat tiny")
    rebound = [event for event in trace.one("session").events if event.name == "rebound"]
    assert other.instance_id in [event.attributes["dsd.drafter"] for event in rebound]
    assert not trace.named("failover")


async def test_an_error_is_told_by_its_code(traced_world: World, receiver: Receiver) -> None:
    verifier = await traced_world.verifier()
    verifier.refuses, verifier.refuses_finally = "too_long", True
    await answered(traced_world)
    trace = await receiver.trace("gateway chat tiny")
    told = trace.root.attributes
    assert (told["error.type"], told["http.response.status_code"]) == ("too_long", 400)
    assert trace.one("session").attributes["error.type"] == "too_long"
    assert not trace.root.failed, "a client's error is no failure of the server"


async def test_a_session_that_fails_fails_its_request(traced_world: World, receiver: Receiver) -> None:
    verifier = await traced_world.verifier()
    verifier.refuses, verifier.refuses_finally = "internal", True
    await answered(traced_world)
    trace = await receiver.trace("gateway chat tiny")
    told = trace.root.attributes
    assert (told["error.type"], told["http.response.status_code"]) == ("internal", 500)
    assert trace.root.failed


async def test_a_body_that_is_refused_ends_the_trace_where_that_was_found(
    traced_world: World, receiver: Receiver
) -> None:
    await traced_world.verifier()
    await answered(traced_world, temperature=-1)
    trace = await receiver.trace(f"gateway {CHAT}")
    assert [span.name for span in trace.children(trace.root)] == ["read", "tokenise"]
    assert trace.root.attributes["http.response.status_code"] == 400
    assert "gen_ai.operation.name" not in trace.root.attributes


async def test_a_client_that_leaves_breaks_its_answer_off(traced_world: World, receiver: Receiver) -> None:
    world = traced_world
    world.answer = LONG
    await world.verifier("only", PASS_S)
    stream = await ask(world)
    await stream.read(10)
    stream._response.close()
    trace = await receiver.trace("gateway chat tiny")
    assert trace.root.attributes["error.type"] in ("broken_off", "cancelled")
    assert trace.one("session").failed
    assert trace.root.attributes["gen_ai.response.finish_reasons"] == []


async def test_a_request_in_the_queue_is_seen_there(
    folder: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = tracing_to(monkeypatch, "gateway", receiver.url)
    async with a_world(folder, tracing, max_sessions=1) as world:
        world.answer = LONG
        await world.verifier("slow", PASS_S)
        first = asyncio.create_task(answered(world))
        await until(lambda: len(world.gateway.sessions) == 1)
        second = asyncio.create_task(answered(world))
        await asyncio.gather(first, second)
    await asyncio.to_thread(tracing.close)
    await receiver.until(lambda: len(receiver.traces) == 2)
    waits = sorted(trace.one("queued").ns for trace in receiver.traces)
    assert waits[1] > 10 * waits[0]


async def test_no_span_holds_text_of_prompts_or_answers(traced_world: World, receiver: Receiver) -> None:
    world = traced_world
    await world.verifier()
    await world.drafter()
    secret, user = "a secret of mine", "someone@example.org"
    await answered(world, messages=[{"role": "user", "content": secret}], user=user, stop=["lazy"])
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "dsd=secret"}
    await answered(world, COMPLETIONS, parent, model="tiny", prompt=secret, echo=True)
    await answered(world, COMPLETIONS, model=secret, prompt=secret, max_tokens=-7)
    await receiver.until(lambda: len(receiver.traces) == 3)
    shown = repr(receiver.spans)
    for text in (secret, "secret", user, "lazy", world.answer, "quick brown"):
        assert text not in shown, text


@pytest.mark.parametrize(
    "traced_world", [{"BSP_MAX_QUEUE_SIZE": "16", "BSP_MAX_EXPORT_BATCH_SIZE": "8"}], indirect=True
)
async def test_a_receiver_that_hangs_holds_up_no_request(traced_world: World, receiver: Receiver) -> None:
    await traced_world.verifier()
    receiver.slow.clear()
    await answered(traced_world)
    await receiver.until(lambda: receiver.num_requests > 0)
    async with asyncio.timeout(10):
        for _ in range(20):
            assert (await answered(traced_world))["choices"][0]["message"]["content"] == traced_world.answer
    assert receiver.spans == []
    receiver.slow.set()


async def test_off_an_answer_of_any_length_costs_the_same_few_calls(folder: Path) -> None:
    async with a_world(folder) as world:
        await world.verifier()
        await world.drafter()
        short, long = [await calls_of(world, num) for num in (4, 100)]
    assert short == long
    assert sum(long.values()) < 12


@sampled_by("parentbased_traceidratio", "0.0")
async def test_a_request_that_is_not_sampled_costs_the_same_few_calls_whatever_its_length(traced_world: World) -> None:
    await traced_world.verifier()
    await traced_world.drafter()
    short, long = [await calls_of(traced_world, num) for num in (4, 100)]
    assert short == long


async def calls_of(world: World, num_tokens: int) -> Counter[str]:
    """Calls of tracing's functions in this thread while an answer of so many tokens is made."""
    world.answer = LONG
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename in OURS:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        body = await answered(world, max_tokens=num_tokens)
    finally:
        sys.setprofile(None)
    assert body["usage"]["completion_tokens"] == num_tokens
    return calls
