"""One request's trace over real processes: gateway, verifiers, drafter, with speculation, without it, and across a
failover.

A session is prefill or decode at the gateway, whatever happens. So these spans explain nothing, and don't count: the
verifier's must cover the session, and where that was killed with its spans, the failover and the next verifier's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.processes import Processes, Question, processes
from tests.otlp import Receiver, Trace, receiving, set_environment, share

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = Question("Tell me how to bake bread, step by step.", 64)
STATIC: dict[str, Any] = {"speculation": "static", "window": 8}
OFF: dict[str, Any] = {"speculation": "off"}
COMMITTED = "dsd_verifier_committed_tokens_total"
NAMED = 0.95  # of a request's time, at least


@dataclass(slots=True)
class Traced:
    """A system and the receiver of its traces."""

    system: Processes
    receiver: Receiver

    async def next(self, *names: str) -> Trace:
        """The trace of the only request since the last one."""
        trace = await self.receiver.trace("gateway chat smollm2-135m", *names)
        self.receiver.spans.clear()
        return trace


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    run_dir = tmp_path_factory.mktemp("traces")
    async with receiving() as receiver:
        with pytest.MonkeyPatch.context() as patch:
            set_environment(patch, receiver.url)
            async with processes(default_models, run_dir, ("int8",), num_verifiers=2) as system:
                yield Traced(system, receiver)


def check_whole(trace: Trace, killed_at: int = 0) -> None:
    """All spans are of one trace, and name nearly all of its time. killed_at: when the first verifier was, in Unix
    nanoseconds; until then the gateway's spans are all that is left."""
    own = trace.leaves("gateway")
    assert share(trace.root, own) >= NAMED
    told = [span for span in own if span.name not in ("prefill", "decode")] + trace.leaves("verifier")
    assert share(replace(trace.root, begin=max(trace.root.begin, killed_at)), told) >= NAMED
    session = trace.one("session")
    for name, service in (("verify", "verifier"), ("draft", "drafter")):
        assert {span.parent_id for span in trace.named(name, service)} <= {session.span_id}


async def test_with_speculation_gateway_verifier_and_drafter_account_for_the_time(traced: Traced) -> None:
    answer = await traced.system.ask(QUESTION, **STATIC)
    trace = await traced.next("verifier verify", "drafter draft")
    check_whole(trace)
    verify, draft, session = trace.one("verify"), trace.one("draft"), trace.one("session")
    assert share(draft, trace.leaves("drafter")) >= NAMED
    assert [span.name for span in trace.children(verify)] == ["queued", "prefill", "decode"]
    assert session.attributes["dsd.guesses.accepted"] == answer.dsd["accepted"] > 0
    assert verify.attributes["dsd.guesses.accepted"] == answer.dsd["accepted"]
    assert verify.attributes["gen_ai.usage.output_tokens"] == answer.num_tokens
    assert draft.attributes["dsd.guesses.drafted"] >= answer.dsd["accepted"]
    assert verify.attributes["dsd.drafter"] == draft.instance == session.attributes["dsd.drafter"]


async def test_without_speculation_gateway_and_verifier_account_for_the_time(traced: Traced) -> None:
    answer = await traced.system.ask(QUESTION, **OFF)
    trace = await traced.next("verifier verify")
    check_whole(trace)
    session = trace.one("session")
    assert not trace.named("draft")
    assert session.attributes["dsd.speculation"] == "off"
    assert trace.root.attributes["gen_ai.usage.output_tokens"] == answer.num_tokens


@pytest.mark.parametrize("dsd", [STATIC, OFF], ids=["speculating", "target-only"])
async def test_across_a_failover_the_loss_and_the_second_verifier_account_for_the_time(
    traced: Traced, dsd: dict[str, Any]
) -> None:
    system = traced.system
    await system.whole()
    committed = await system.read("verifier", COMMITTED)
    async with system.stream(QUESTION, **dsd) as stream:
        await stream.pieces(3)
        victim = await system.busiest("verifier", COMMITTED, committed)
        killed_at = time.time_ns()
        system.signal(victim, SIGKILL)
        answer = await stream.rest()
    trace = await traced.next("gateway failover", "verifier verify")
    check_whole(trace, killed_at)
    failover, decode, verify = trace.one("failover"), trace.one("decode", "gateway"), trace.one("verify")
    assert failover.attributes["dsd.verifier.lost"].startswith(f"{victim}.")
    assert failover.attributes["dsd.verifier"] == verify.instance
    assert decode.begin < failover.begin < verify.begin < failover.end < decode.end
    rest = [span for span in trace.leaves("verifier") if span.parent_id == verify.span_id]
    assert [span.name for span in rest] == ["queued", "prefill", "decode"]
    assert verify.attributes["gen_ai.usage.output_tokens"] < answer.num_tokens
    assert trace.one("session").attributes["dsd.failovers"] == 1
