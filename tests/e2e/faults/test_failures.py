"""Processes die, restart and leave under running streams: every stream goes on, its text unchanged, no token twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.processes import Answer, Processes, Question, processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_TOKENS = 96  # long enough that a stale heartbeat is noticed before the answer ends
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Tell me how to bake bread, step by step.",
    "Describe a day in the life of a beaver.",
    "Write a long letter from a sailor to his family.",
)
GREEDY = [Question(prompt, NUM_TOKENS) for prompt in PROMPTS]
SAMPLED = [Question(prompt, NUM_TOKENS, temperature=0.8, top_p=0.95, seed=7 + i) for i, prompt in enumerate(PROMPTS)]
QUESTIONS = GREEDY + SAMPLED
COMMITTED, DRAFTED = "dsd_verifier_committed_tokens_total", "dsd_drafter_drafted_tokens_total"
STATIC: dict[str, Any] = {"speculation": "static", "window": 8}  # drafted for, where *adaptive* may pause the pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    run_dir = tmp_path_factory.mktemp("failures")
    async with processes(default_models, run_dir, ("int8", "int4"), num_verifiers=2) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(started: Processes) -> dict[Question, Answer]:
    """The answers to all questions, asked at once, with nothing going wrong."""
    answers = await asyncio.gather(*(started.ask(question) for question in QUESTIONS))
    assert min(answer.num_tokens for answer in answers) > 64, "too short to be disturbed"
    return dict(zip(QUESTIONS, answers, strict=True))


@pytest_asyncio.fixture(loop_scope="module")
async def system(started: Processes, undisturbed: dict[Question, Answer]) -> Processes:
    """The system with all its processes up, whatever the test before did to it."""
    await started.whole()
    return started


@pytest.mark.parametrize("question", [GREEDY[0], SAMPLED[0]], ids=["greedy", "sampled"])
async def test_a_drafter_killed_in_mid_answer_is_replaced_by_the_other(
    system: Processes, undisturbed: dict[Question, Answer], question: Question
) -> None:
    drafted = await system.read("drafter", DRAFTED)
    changes = (await system.metrics("gateway")).total("dsd_gateway_drafter_changes_total")

    async with system.stream(question, **STATIC) as stream:
        await stream.pieces(3)
        killed = await system.busiest("drafter", DRAFTED, drafted)
        system.signal(killed, SIGKILL)
        answer = await stream.rest()

    assert answer.told == undisturbed[question].told
    assert answer.dsd["drafter"] in set(system.names("drafter")) - {killed}
    assert (await system.metrics("gateway")).total("dsd_gateway_drafter_changes_total") > changes
    await system.whole()
    await system.balanced()


async def test_with_every_drafter_killed_in_mid_answer_the_verifier_goes_on_alone(
    system: Processes, undisturbed: dict[Question, Answer]
) -> None:
    async with system.stream(GREEDY[1]) as stream:
        await stream.pieces(3)
        for name in system.names("drafter"):
            system.signal(name, SIGKILL)
        await stream.pieces(8)
        assert not any(system.child(name).ready.is_set() for name in system.names("drafter"))
        answer = await stream.rest()

    assert answer.told == undisturbed[GREEDY[1]].told
    await system.whole()
    again = await system.ask(GREEDY[1], **STATIC)
    assert again.told == undisturbed[GREEDY[1]].told
    assert again.num_judged > 0, "speculation does not come back with the drafters"


@pytest.mark.parametrize("question", [GREEDY[2], SAMPLED[2]], ids=["greedy", "sampled"])
async def test_a_verifier_killed_in_mid_answer_is_replaced_by_the_other(
    system: Processes, undisturbed: dict[Question, Answer], question: Question
) -> None:
    committed = await system.read("verifier", COMMITTED)
    failovers = (await system.metrics("gateway")).total("dsd_gateway_failovers_total")

    async with system.stream(question) as stream:
        await stream.pieces(3)
        killed = await system.busiest("verifier", COMMITTED, committed)
        system.signal(killed, SIGKILL)
        answer = await stream.rest()

    assert answer.told == undisturbed[question].told
    assert answer.dsd["verifier"] in set(system.names("verifier")) - {killed}
    assert (await system.metrics("gateway")).total("dsd_gateway_failovers_total") > failovers
    await system.balanced()


async def test_a_killed_controller_is_not_missed(system: Processes, undisturbed: dict[Question, Answer]) -> None:
    async with system.stream(GREEDY[3]) as steered, system.stream(GREEDY[0], **STATIC) as guessed:
        await asyncio.gather(steered.pieces(3), guessed.pieces(3))
        system.signal("controller", SIGKILL)
        answers = await asyncio.gather(steered.rest(), guessed.rest())

    assert [answer.told for answer in answers] == [undisturbed[GREEDY[3]].told, undisturbed[GREEDY[0]].told]
    assert None not in [answer.dsd["drafter"] for answer in answers]
    assert answers[1].num_judged > 0


async def test_a_nats_server_killed_and_restarted_under_8_streams_costs_none_of_them_a_token(
    system: Processes, undisturbed: dict[Question, Answer]
) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(system.stream(question)) for question in QUESTIONS]
        await asyncio.gather(*(stream.pieces(2) for stream in streams))
        assert (await system.metrics("gateway")).total("dsd_gateway_sessions") == len(streams), "some are over already"
        await system.crash_nats()
        answers = await asyncio.gather(*(stream.rest() for stream in streams))

    assert [answer.told for answer in answers] == [undisturbed[question].told for question in QUESTIONS]
    await system.balanced()


async def test_a_verifier_told_to_stop_finishes_its_streams_and_takes_no_other(
    system: Processes, undisturbed: dict[Question, Answer]
) -> None:
    failovers = (await system.metrics("gateway")).total("dsd_gateway_failovers_total")
    committed = await system.read("verifier", COMMITTED)
    num_starts = {name: system.child(name).num_starts for name in system.names("verifier")}

    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(system.stream(question)) for question in GREEDY]
        await asyncio.gather(*(stream.pieces(2) for stream in streams))
        stopped = await system.busiest("verifier", COMMITTED, committed)
        system.signal(stopped, SIGTERM)
        await system.drains(stopped)
        streams += [await stack.enter_async_context(system.stream(question)) for question in SAMPLED[:2]]
        answers = await asyncio.gather(*(stream.rest() for stream in streams))

    assert [answer.told for answer in answers] == [undisturbed[answer.question].told for answer in answers]
    served = [answer.dsd["verifier"] for answer in answers]
    assert stopped in served[: len(GREEDY)]
    assert stopped not in served[len(GREEDY) :]
    assert (await system.metrics("gateway")).total("dsd_gateway_failovers_total") == failovers
    await system.restarted(stopped, num_starts[stopped])
    assert any(notice.startswith(f"{stopped} ended with status 0") for notice in system.notices), system.notices
