"""Requests whose grammars are compiled off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from shared.grammar.compiling import CompileQueue
from shared.grammar.grammars import Grammars
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds
from shared.protocol.refusal import Refused
from tests.gateway.tiny import make_folder

GOOD, BAD = 'start: "a"', "start: b"


def request(number: int, grammar: str | None, term: int = 0) -> Open:
    return Open(f"{number:032x}", term, None, TokenIds([1]), NO_TOKENS, Sampling(), NO_TOKENS, 5, grammar=grammar)


@dataclass
class Seen:
    compiled: list[Open] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # session and code
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def go_on(self, sender: str, request: Open) -> None:
        self.compiled.append(request)
        self.changed.set()

    def refuse(self, sender: str, request: Open, refusal: Refused) -> None:
        self.refused.append((request.session_id, refusal.code))
        self.changed.set()


@asynccontextmanager
async def running(queue: CompileQueue[Open]) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    return Grammars(make_folder(tmp_path_factory.mktemp("model")))


async def test_a_request_waits_for_its_grammar_once(grammars: Grammars) -> None:
    seen = Seen()
    queue: CompileQueue[Open] = CompileQueue(grammars, 8, seen.go_on, seen.refuse)
    assert not queue.takes("gateway", request(0, None))
    async with running(queue), asyncio.timeout(30):
        assert queue.takes("gateway", request(1, GOOD))
        await seen.changed.wait()
    assert [each.session_id for each in seen.compiled] == [f"{1:032x}"]
    assert not queue.takes("gateway", request(2, GOOD))


async def test_a_grammar_that_does_not_compile_is_refused_for_good(grammars: Grammars) -> None:
    seen = Seen()
    queue: CompileQueue[Open] = CompileQueue(grammars, 8, seen.go_on, seen.refuse)
    async with running(queue), asyncio.timeout(30):
        queue.takes("gateway", request(1, BAD))
        await seen.changed.wait()
    assert seen.refused == [(f"{1:032x}", "bad_request")]


async def test_a_request_that_is_closed_meanwhile_has_no_effect(grammars: Grammars) -> None:
    seen = Seen()
    queue: CompileQueue[Open] = CompileQueue(grammars, 8, seen.go_on, seen.refuse)
    queue.takes("gateway", request(1, GOOD))
    queue.takes("gateway", request(2, GOOD + " "))
    queue.forget("another", f"{2:032x}")
    queue.forget("gateway", f"{1:032x}")
    async with running(queue), asyncio.timeout(30):
        await seen.changed.wait()
    assert [each.session_id for each in seen.compiled] == [f"{2:032x}"]


async def test_the_highest_term_of_its_own_gateway_goes_on(grammars: Grammars) -> None:
    seen = Seen()
    queue: CompileQueue[Open] = CompileQueue(grammars, 8, seen.go_on, seen.refuse)
    for sender, term in (("gateway", 1), ("gateway", 3), ("gateway", 2), ("thief", 9)):
        assert queue.takes(sender, request(1, GOOD, term))
    async with running(queue), asyncio.timeout(30):
        await seen.changed.wait()
    assert [each.term for each in seen.compiled] == [3]


async def test_more_waiting_requests_than_sessions_are_refused(grammars: Grammars) -> None:
    seen = Seen()
    queue: CompileQueue[Open] = CompileQueue(grammars, 1, seen.go_on, seen.refuse)
    assert queue.takes("gateway", request(1, GOOD))
    assert queue.takes("gateway", request(2, GOOD))
    assert seen.refused == [(f"{2:032x}", "overloaded")]
