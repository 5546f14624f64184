"""A whole local system on vLLM: its verifier is killed, restarts and drains; no answer is lost or changed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
import pytest_asyncio

from services.local.engine import EngineName, VerifierEngine
from tests.e2e.processes import Processes, Question, processes, until
from tests.vllm.conftest import EAGER

GREEDY = Question("Write a short story about a lighthouse keeper who finds a letter in a bottle.", 48)
SAMPLED = Question("Tell me how to bake bread, step by step.", 48, temperature=0.8, top_p=0.95, seed=7)

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    engine = VerifierEngine(EngineName.VLLM, Path(sys.executable))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSD_VLLM_ARGS", EAGER)
        patch.setenv("DSD_DTYPE", "float32")
        run_dir = tmp_path_factory.mktemp("system")
        async with processes(default_models, run_dir, ("int8",), num_verifiers=1, engine=engine) as started:
            yield started


async def test_answers_with_and_without_guesses_are_one_and_name_vllms_numerics(system: Processes) -> None:
    for question in (GREEDY, SAMPLED):
        alone = await system.ask(question, speculation="off")
        guessed = await system.ask(question, speculation="static", window=8)
        assert guessed.told == alone.told
        assert guessed.fingerprint == alone.fingerprint != ""


@pytest.mark.parametrize("question", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_an_answer_outlives_the_only_verifier(system: Processes, question: Question) -> None:
    undisturbed = await system.ask(question)
    num_starts = system.child("verifier-0").num_starts
    async with system.stream(question) as stream:
        await stream.pieces(3)
        system.signal("verifier-0", SIGKILL)
        answer = await stream.rest()
    assert answer.told == undisturbed.told
    assert system.child("verifier-0").num_starts > num_starts
    await system.whole()
    await system.balanced()


async def test_a_client_that_leaves_ends_its_session(system: Processes) -> None:
    async with system.stream(Question("Count to a thousand.", 1500)) as stream:
        await stream.pieces(3)

    async def is_gone() -> bool:
        return (await system.metrics("verifier-0")).total("dsd_verifier_sessions") == 0

    await until(is_gone, 30, "the session goes on")


async def test_a_verifier_that_is_told_to_end_finishes_its_answers_first(system: Processes) -> None:
    undisturbed = await system.ask(GREEDY)
    num_starts = system.child("verifier-0").num_starts
    async with system.stream(GREEDY) as stream:
        await stream.pieces(3)
        pid = system.child("verifier-0").pid
        system.signal("verifier-0", SIGTERM)
        answer = await stream.rest()
    assert answer.told == undisturbed.told
    assert answer.dsd["verifier"] == "verifier-0"
    await system.restarted("verifier-0", num_starts)
    assert system.child("verifier-0").pid != pid
    await asyncio.wait_for(system.whole(), 120)
