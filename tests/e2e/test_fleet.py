"""Three drafters and two verifiers as processes: all of them work, and nobody's text depends on it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.protocol.subjects import instance_name
from tests.e2e.processes import FATES, Processes, Question, processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTS = (
    "Explain in a few sentences how rain is made.",
    "Write a short story about a lighthouse keeper.",
    "What is 17 times 23? Show the steps.",
    "List five vegetables that grow well in shade.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Why is the sky blue?",
)
NUM_TOKENS = 32
GREEDY = [Question(prompt, NUM_TOKENS) for prompt in PROMPTS]
SAMPLED = [Question(prompt, NUM_TOKENS, temperature=0.8, top_p=0.95, seed=20 + i) for i, prompt in enumerate(PROMPTS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    run_dir = tmp_path_factory.mktemp("fleet")
    async with processes(default_models, run_dir, ("int8", "int4", "int4"), num_verifiers=2) as fleet:
        yield fleet


async def test_12_sessions_at_once_get_their_single_texts_and_every_process_carries_traffic(fleet: Processes) -> None:
    questions = GREEDY + SAMPLED
    alone = [await fleet.ask(question, speculation="off") for question in questions]
    committed = await fleet.read("verifier", "dsd_verifier_committed_tokens_total")
    drafted = await fleet.read("drafter", "dsd_drafter_drafted_tokens_total")
    reports = (await fleet.metrics("controller")).total("dsd_controller_reports_total")

    together = await asyncio.gather(
        *(fleet.ask(question, speculation="adaptive") for question in GREEDY),
        *(fleet.ask(question, speculation="static", window=8) for question in SAMPLED),  # drafted for whatever it costs
    )

    assert [answer.told for answer in together] == [answer.told for answer in alone]
    assert len({answer.fingerprint for answer in together}) == 1
    committed_now = await fleet.read("verifier", "dsd_verifier_committed_tokens_total")
    drafted_now = await fleet.read("drafter", "dsd_drafter_drafted_tokens_total")
    assert all(committed_now[name] > committed[name] for name in committed), (committed, committed_now)
    assert all(drafted_now[name] > drafted[name] for name in drafted), (drafted, drafted_now)
    assert (await fleet.metrics("controller")).total("dsd_controller_reports_total") > reports
    assert sum(answer.num_judged for answer in together) > 0
    await fleet.balanced()


async def test_usage_counts_accepted_guesses_only_where_somebody_guessed(fleet: Processes) -> None:
    unguessed = await fleet.ask(GREEDY[0], speculation="off")
    async with asyncio.timeout(120):
        guessed = await fleet.ask(GREEDY[0], speculation="static", window=8)
        while not guessed.num_accepted:  # a drafter on a busy machine may be late for a whole answer
            guessed = await fleet.ask(GREEDY[0], speculation="static", window=8)

    assert guessed.told == unguessed.told
    assert guessed.num_accepted > 0
    assert unguessed.num_accepted == 0
    assert all(unguessed.dsd[fate] == 0 for fate in FATES)
    assert unguessed.dsd["drafter"] is None


@pytest.mark.parametrize("question", [GREEDY[1], SAMPLED[1]], ids=["greedy", "sampled"])
async def test_every_guess_of_a_session_has_one_fate_and_all_sides_agree_on_the_accepted_ones(
    fleet: Processes, question: Question
) -> None:
    before = await fleet.metrics("drafter-1")

    answer = await fleet.ask(question, speculation="static", window=8, drafter="drafter-1")

    await fleet.balanced()
    after = await fleet.metrics("drafter-1")
    fates = {fate: after.fates[fate] - before.fates[fate] for fate in FATES}
    assert after.drafted - before.drafted == sum(fates.values()) > 0
    assert answer.num_accepted == answer.dsd["accepted"] == fates["accepted"]
    for fate in ("rejected", "late"):  # the drafter also judges guesses that came too late to be sent
        assert answer.dsd[fate] <= fates[fate], (fate, answer.dsd, fates)


async def test_dsd_gets_the_same_text_and_sees_the_whole_fleet(fleet: Processes) -> None:
    question = GREEDY[2]
    expected = await fleet.ask(question, speculation="off")

    asked = json.loads(
        await dsd(fleet, "ask", question.prompt, "--json", "--temperature", "0", "--max-tokens", str(NUM_TOKENS))
    )
    told = json.loads(await dsd(fleet, "status", "--json"))

    assert (asked["text"], asked["finish_reason"]) == (expected.text, expected.finish)
    assert asked["usage"]["completion_tokens"] == expected.num_tokens
    assert asked["dsd"]["drafter"] in {peer["name"] for peer in told["drafters"]}
    for service in ("verifier", "drafter", "controller"):
        assert [peer["name"] for peer in told[f"{service}s"]] == sorted(fleet.names(service))
    assert all(peer["num_sessions"] == 0 < peer["step_ms"] for peer in told["drafters"])
    pairs = {(instance_name(pair["drafter_id"]), instance_name(pair["verifier_id"])) for pair in told["windows"]}
    assert (asked["dsd"]["drafter"], asked["dsd"]["verifier"]) in pairs


async def dsd(fleet: Processes, *argv: str) -> str:
    """What `dsd` prints; it must succeed."""
    command = (sys.executable, "-m", "client", *argv, "--url", fleet.system.plan.address)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(90):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()
