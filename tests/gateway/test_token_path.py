"""What runs for a token in a gateway: with journal and traces off nothing of them, nor of its metrics, and never the
session's driver. The bus counts each message (`benchmarks.profiling` has what that costs)."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import prometheus_client

import services.gateway
from services.gateway import metrics, traces
from services.gateway.inspector import journal
from services.gateway.session.manager import LiveSession
from shared.runtime import otel, tracing
from tests.gateway.conftest import World, a_world
from tests.gateway.http.test_http import CHAT, chat
from tests.gateway.session.test_failover import LONG

INSPECTOR = str(Path(journal.__file__).parent)
TOLD = (*(str(module.__file__) for module in (traces, tracing, otel, metrics)), INSPECTOR)
LIBRARY, GATEWAY = (str(Path(str(package.__file__)).parent) for package in (prometheus_client, services.gateway))
DRIVER = LiveSession._drive.__code__
STILL = {"heartbeat_s": 20.0, "poll_after_s": 10.0, "session_timeout_s": 60.0}  # nothing runs by the clock meanwhile


async def calls_of(world: World, num_tokens: int) -> tuple[Counter[str], int]:
    """Calls of the gateway into journal, traces and metrics on the event loop while an answer of so many tokens is
    made, by function, with the turns of the session's driver, and the number of its verdicts."""
    world.answer = LONG
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, arg: object) -> None:
        called, caller = (each.f_code.co_filename if each else "" for each in (frame, frame.f_back))
        is_counted = called.startswith(TOLD) or (called.startswith(LIBRARY) and caller.startswith(GATEWAY))
        is_counted = is_counted or frame.f_code is DRIVER
        if event == "call" and is_counted:
            calls[f"{Path(called).stem} {frame.f_code.co_name}"] += 1

    sys.setprofile(count)
    try:
        async with world.client.post(CHAT, json=chat(max_tokens=num_tokens)) as response:
            body = await response.json()
    finally:
        sys.setprofile(None)
    assert body["usage"]["completion_tokens"] == num_tokens
    return calls, body["dsd"]["num_verdicts"]


async def test_with_journal_and_traces_off_a_token_calls_neither_nor_metrics(folder: Path) -> None:
    async with a_world(folder, inspector=False, **STILL) as world:
        await world.verifier()
        await world.drafter()
        (short, _), (long, _) = [await calls_of(world, num) for num in (4, 100)]
    assert short == long
    assert not any(name.startswith(("journal", "recent", "otel")) for name in long)


async def test_a_journal_is_called_once_for_a_verdict_and_else_as_often_for_any_answer(folder: Path) -> None:
    async with a_world(folder, **STILL) as world:
        await world.verifier()
        (short, few), (long, many) = [await calls_of(world, num) for num in (4, 100)]
    assert many > few
    assert long - short == {"journal on_verdict": many - few}
    assert short - long == {}
