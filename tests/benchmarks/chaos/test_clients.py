"""Clients of a chaos run write down every attempt, and ask the other gateway when one refuses or breaks off."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from benchmarks.chaos.clients import Clients
from benchmarks.chaos.questions import Asking, Question
from benchmarks.chaos.records import RequestRecord

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
USAGE = {"prompt_tokens": 3, "completion_tokens": 5}
QUESTION = Question(0, (1, 2, 3), 8, 2, 0.0, 7)


def event(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"id": f"cmpl-{index}b", "choices": [{"index": index, "text": text, "finish_reason": finish}]}


EVENTS = [event(1, "three"), event(0, "one"), event(0, " two"), event(1, "", "stop"), event(0, "", "length")]


async def stream(request: web.Request, events: list[dict[str, Any]], end: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for each in events:
        await response.write(b"data: " + json.dumps(each).encode() + b"\n\n")
    await response.write(end)
    return response


async def answers(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    assert (body["n"], request.headers["Authorization"]) == (2, "Bearer key")
    if body["stream"]:
        return await stream(request, [*EVENTS, {"id": "cmpl-0b", "choices": [], "usage": USAGE}], b"data: [DONE]\n\n")
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(("one two", "three"))]
    return web.json_response({"id": "cmpl-0b", "choices": choices[::-1], "usage": USAGE})


async def sessions(request: web.Request) -> web.StreamResponse:
    """Two choices; the second one moved."""
    assert request.headers["Authorization"] == "Bearer key"
    if (name := request.match_info.get("id")) is None:
        return web.json_response({"requests": [{"id": each, "asked_at": 7.5} for each in ("0b", "1b")]})
    terms = ((1, "verifier-0"), (2, "verifier-1" if name == "1b" else "verifier-0"))
    steps = [
        {"at_ms": 100.0 * term, "kind": kind, "instance": verifier, "term": term}
        for term, verifier in terms
        for kind in ("open", "opened")
    ]
    return web.json_response({"steps": steps, "verdicts": [], "total_ms": 400.0})


async def breaks_off(request: web.Request) -> web.StreamResponse:
    return await stream(request, EVENTS[:2], b"")


async def drains(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"code": "draining"}}, status=503)


async def tells_an_error(request: web.Request) -> web.StreamResponse:
    return await stream(request, [EVENTS[0], {"error": {"code": "overloaded"}}], b"data: [DONE]\n\n")


@asynccontextmanager
async def gateways(*handlers: Handler) -> AsyncIterator[dict[str, str]]:
    runners, urls = [], {}
    for number, handler in enumerate(handlers):
        app = web.Application()
        app.router.add_post("/v1/completions", handler)
        if handler is answers:
            app.router.add_get("/v1/dsd/requests", sessions)
            app.router.add_get("/v1/dsd/requests/{id}", sessions)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        urls[f"gateway-{number}"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield urls
    for runner in runners:
        await runner.cleanup()


async def asked(urls: dict[str, str], is_streamed: bool = True) -> list[RequestRecord]:
    """Eight requests, so that both gateways are asked first."""
    ticks = itertools.count()
    records: list[RequestRecord] = []
    clients = Clients(urls, "model", lambda: float(next(ticks)), 1, records)
    async with asyncio.timeout(30):
        await clients.ask_all([Asking(i, QUESTION, is_streamed, "key") for i in range(8)], 2, lambda: None)
    return records


async def test_a_stream_is_written_down_by_choice_with_the_times_of_its_pieces() -> None:
    async with gateways(answers) as urls:
        (answer,) = (await asked(urls))[0].attempts
    assert (answer.status, answer.texts, answer.finishes) == ("ok", ["one two", "three"], ["length", "stop"])
    assert (answer.num_tokens, answer.num_prompt_tokens) == (5, 3)
    assert [len(arrivals) for arrivals in answer.arrivals_s] == [2, 1]


async def test_the_gateway_that_answered_tells_which_sessions_of_the_answer_moved() -> None:
    for is_streamed in (True, False):
        async with gateways(answers) as urls:
            for record in await asked(urls, is_streamed):
                (moved,) = record.answer.moves or []
                assert moved.opened_s - moved.begun_s == pytest.approx(0.1)


async def test_an_answer_is_right_if_its_gateway_ends_behind_it_but_its_moves_are_untold() -> None:
    async def tells_nothing(request: web.Request) -> web.StreamResponse:
        return await answers(request)

    async with gateways(tells_nothing) as urls:
        assert {(each.answer.status, each.answer.moves is None) for each in await asked(urls)} == {("ok", True)}


async def test_a_whole_answer_has_its_choices_by_index() -> None:
    async with gateways(answers) as urls:
        (answer,) = (await asked(urls, is_streamed=False))[0].attempts
    assert (answer.status, answer.texts, answer.arrivals_s) == ("ok", ["one two", "three"], [])


async def test_a_request_goes_to_the_other_gateway_and_what_broke_off_is_kept() -> None:
    for handler, status, told in (
        (breaks_off, "broken off", ["one", "three"]),
        (drains, "503 draining", []),
        (tells_an_error, "error overloaded", ["", "three"]),
    ):
        async with gateways(handler, answers) as urls:
            records = await asked(urls)
        twice = [record for record in records if len(record.attempts) == 2]
        assert 0 < len(twice) < len(records)
        for record in twice:
            first, second = record.attempts
            assert (first.gateway, first.status, first.texts) == ("gateway-0", status, told)
            assert (second.gateway, second.status) == ("gateway-1", "ok")


async def test_a_gateway_that_does_not_listen_is_a_refused_connection() -> None:
    async with gateways(answers) as urls:
        records = await asked({"gateway-0": "http://127.0.0.1:1", "gateway-1": urls["gateway-0"]})
    statuses = {attempt.status for record in records for attempt in record.attempts}
    assert statuses == {"connection refused", "ok"}
