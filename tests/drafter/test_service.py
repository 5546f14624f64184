"""A drafter on the bus: guesses out, verdicts in, requests that it refuses, other terms. (Bad input: test_input.py.)"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from awc.policy import DEFAULT_CHOICE
from shared.protocol import sampling
from shared.protocol.messages import Bias, Close, Draft, Failure, Heartbeat, Sampling
from tests.drafter.conftest import PROMPT, TEXT, Start, World
from tests.fakes import VOCABULARY, answer, next_token, wrong

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


async def test_a_new_session_polls_at_once_then_sends_its_window_in_chunks_and_no_more(world: World) -> None:
    request = await world.speculate()
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
    await world.settled()
    first, *chunks = world.drafts(request)
    assert (first.base, first.token_ids, first.epoch) == (len(PROMPT), (), 0)
    assert [len(draft.token_ids) for draft in chunks] == [2, 2, 2, 2]
    assert world.count("drafter_drafted_tokens") == WINDOW
    assert world.verifier.senders == {world.drafter.instance_id}


async def test_guesses_are_drawn_with_the_noise_of_their_own_positions(world: World) -> None:
    options = Sampling(temperature=1.0, seed=11)
    text = list(PROMPT)
    for _ in range(WINDOW):
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[next_token(text)] = 1.0
        text.append(sampling.draw(logits, options, position=len(text)))
    request = await world.speculate(sampling=options)
    assert await world.drafted(request, 0, WINDOW) == text[len(PROMPT) :] != TEXT[:WINDOW]


@pytest.mark.parametrize(
    "options",
    [
        Sampling(frequency_penalty=2.0, logit_bias=(Bias(9, 5.0), Bias(11, 4.5))),
        Sampling(temperature=0.5, seed=3, presence_penalty=1.5, logit_bias=(Bias(9, 5.0), Bias(11, 4.5))),
        Sampling(repetition_penalty=9.0, logit_bias=(Bias(PROMPT[0], 0.5),)),
    ],
    ids=["frequency", "presence", "repetition"],
)
async def test_guesses_are_drawn_with_the_penalties_of_the_prompt_and_of_what_was_guessed_before(
    world: World, options: Sampling
) -> None:
    request = await world.speculate(sampling=options, stop_ids=(9,), min_tokens=3)
    expected = by_the_rules(options, (9,), 3)
    biased = Sampling(options.temperature, seed=options.seed, logit_bias=options.logit_bias)
    assert expected != by_the_rules(biased, (9,), 3), "nothing can be seen of the penalties"
    assert await world.drafted(request, 0, len(expected)) == expected


def by_the_rules(options: Sampling, stop_ids: tuple[int, ...], min_tokens: int) -> list[int]:
    """What a window of the fake draft's guesses must be."""
    output: list[int] = []
    while len(output) < WINDOW and not (output and output[-1] in stop_ids):
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[next_token([*PROMPT, *output])] = 1.0
        history = sampling.History(PROMPT, tuple(output), stop_ids, min_tokens)
        output.append(sampling.draw(logits, options, len(PROMPT) + len(output), history))
    return output


async def test_an_accepting_verdict_slides_the_window(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:5], accepted=4))
    assert await world.drafted(request, WINDOW, 5) == TEXT[WINDOW : WINDOW + 5]
    await world.settled()
    assert world.fates() == {"accepted": 4, "rejected": 0, "late": 1, "discarded": 0}


async def test_a_wrong_guess_is_rolled_back_and_drafting_goes_on_from_the_targets_token(world: World) -> None:
    world.model.is_right = lambda position: position != len(PROMPT) + 2
    request = await world.speculate()
    assert (await world.drafted(request, 0, WINDOW))[2] == wrong(TEXT[2])
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:3], accepted=2, epoch=1))
    assert await world.drafted(request, 3, WINDOW, epoch=1) == TEXT[3 : 3 + WINDOW]
    await world.settled()
    assert world.fates() == {"accepted": 2, "rejected": 1, "late": 0, "discarded": WINDOW - 3}


async def test_a_guess_whose_position_the_target_fixed_by_itself_is_late_and_never_accepted(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    for base in range(3):
        await world.tell(world.verifier, world.verdict(request, base, TEXT[base : base + 1]))
    await world.settled()
    assert world.fates() == {"accepted": 0, "rejected": 0, "late": 3, "discarded": 0}


async def test_when_the_verifier_ran_ahead_the_text_is_fed_in_chunks_and_drafting_goes_on_behind_it(
    start: Start,
) -> None:
    async with start(feed_tokens=8) as world:
        request = await world.speculate()
        await world.drafted(request, 0, WINDOW)
        world.model.steps.clear()
        await world.tell(world.verifier, world.verdict(request, 0, TEXT[:30]))
        assert await world.drafted(request, 30, WINDOW) == TEXT[30 : 30 + WINDOW]
        assert [fed for ((_, fed),) in world.model.steps[:4]] == [8, 8, 7, 1]  # the 7th guess and what is behind it
        await world.settled()
        assert world.count("drafter_drafted_tokens") == 2 * WINDOW  # feeding is not drafting


async def test_a_verdict_from_further_on_makes_one_poll_from_the_own_end(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    for _ in range(2):
        await world.tell(world.verifier, world.verdict(request, 5, TEXT[5:7], accepted=2))
    await world.settled()
    polls = [draft for draft in world.drafts(request)[1:] if not draft.token_ids]
    assert [poll.base for poll in polls] == [len(PROMPT)]
    assert sum(world.fates().values()) == 0


async def test_no_guess_goes_behind_max_tokens(world: World) -> None:
    request = await world.speculate(max_tokens=3)
    assert await world.drafted(request, 0, 3) == TEXT[:3]
    await world.settled()
    assert world.count("drafter_drafted_tokens") == 3


async def test_a_session_whose_answer_goes_on_behind_the_context_lets_the_verifier_run_and_ends(world: World) -> None:
    prompt = (1,) * (world.model.max_context - 3)
    text = answer(prompt, 9)
    await world.decide(window=4, chunk=4, free_run=False)
    request = await world.speculate(prompt, max_tokens=5000)
    assert await world.drafted(request, 0, 3) == text[:3]
    await world.tell(world.verifier, world.verdict(request, 0, text[:4], accepted=3))
    await world.settled()
    (*_, last) = world.drafts(request)
    assert (last.base, last.token_ids, last.free_run) == (len(prompt) + 4, (), True)
    assert not any(draft.free_run for draft in world.drafts(request)[:-1])
    assert len(world.drafter.table) == 0
    assert world.fates() == {"accepted": 3, "rejected": 0, "late": 0, "discarded": 0}


async def test_the_last_verdict_ends_the_session_and_every_guess_has_one_fate(world: World) -> None:
    world.model.is_right = lambda position: position % 3 > 0
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], finish="stop"))
    await world.settled()
    assert len(world.drafter.table) == 0
    assert sum(world.fates().values()) == world.count("drafter_drafted_tokens") >= WINDOW


async def test_closing_discards_the_open_guesses_and_ends_the_session(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=2))
    await world.drafted(request, WINDOW, 2)
    await world.tell(world.gateway, Close(request.session_id, 1))
    await world.settled()
    assert len(world.drafter.table) == 0
    assert world.fates() == {"accepted": 2, "rejected": 0, "late": 0, "discarded": WINDOW}


# --- requests that can not be served ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code", "retryable"),
    [
        ((), 5, "bad_request", False),
        ((1, 97), 5, "bad_request", False),
        ((1,) * 1024, 5, "too_long", False),
        ((1,), 5, "overloaded", True),
    ],
)
async def test_a_request_that_can_not_be_served_is_answered_with_a_failure(
    start: Start, prompt: tuple[int, ...], max_tokens: int, code: str, retryable: bool
) -> None:
    async with start(max_sessions=1) as world:
        if code == "overloaded":
            await world.speculate()
        refused = await world.speculate(prompt, max_tokens, term=4)
        failure = await world.gateway.find(Failure)
        assert (failure.session_id, failure.term) == (refused.session_id, 4)
        assert (failure.code, failure.retryable) == (code, retryable)
        assert world.dropped(code) == 1
        assert world.drafts(refused) == []


async def test_committed_tokens_outside_the_vocabulary_are_refused(world: World) -> None:
    await world.speculate(committed=(97,))
    assert (await world.gateway.find(Failure)).code == "bad_request"


async def test_heartbeats_and_metrics_tell_who_computes_the_draft(start: Start) -> None:
    async with start(heartbeat_s=0.05) as world:
        assert world.model.num_nodes == {"OpenVINO": 90, "CPU": 10}
        await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.provider == "OpenVINO")
        nodes = [
            world.registry.get_sample_value("dsd_drafter_graph_nodes", {"provider": name})
            for name in world.model.num_nodes
        ]
        assert nodes == [90, 10]


async def test_draining_refuses_new_sessions_and_ends_when_the_running_ones_have(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    draining = asyncio.create_task(world.drafter.drain())
    await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.draining)
    refused = await world.speculate()
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.code, failure.retryable) == (refused.session_id, "draining", True)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:4], accepted=4))
    await world.drafted(request, WINDOW, 4)
    assert not draining.done()
    await world.tell(world.gateway, Close(request.session_id, 1))
    await asyncio.wait_for(draining, 10)


async def test_a_step_that_fails_costs_its_session_only(world: World) -> None:
    world.model.poison = 0
    bad = await world.speculate(prompt=(0, 1))
    good = await world.speculate()
    assert await world.drafted(good, 0, WINDOW) == TEXT[:WINDOW]
    await world.settled()
    assert world.count("drafter_failed_steps") == 1
    assert world.drafter.table.get(bad.session_id) is None
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.term, failure.code, failure.retryable) == (bad.session_id, 1, "internal", True)


# --- other terms ------------------------------------------------------------------------------------------------------


async def test_a_higher_term_binds_another_verifier_and_the_old_one_is_not_heard(world: World) -> None:
    other = await world.meet("verifier", "other")
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    rebound = await world.speculate(session_id=request.session_id, term=2, committed=TEXT[:3], verifier=other)
    await other.find(Draft, lambda draft: draft.term == 2 and TEXT[4] in draft.token_ids)
    await world.tell(world.verifier, world.verdict(rebound, 3, TEXT[3:5], accepted=2))
    await world.settled()
    assert world.dropped("foreign verifier") == 1
    assert world.fates() == {"accepted": 0, "rejected": 0, "late": 0, "discarded": WINDOW}
    first = world.drafts(rebound, other)[0]
    assert (first.base, first.token_ids, first.epoch) == (len(PROMPT) + 3, (), 0)


async def test_a_rebound_session_with_a_longer_answer_gets_a_larger_cache(world: World) -> None:
    request = await world.speculate(max_tokens=4)
    await world.drafted(request, 0, 4)
    rebound = await world.speculate(session_id=request.session_id, term=2, committed=TEXT[:3])
    assert await world.drafted(rebound, 3, WINDOW) == TEXT[3 : 3 + WINDOW]


async def test_the_same_request_again_changes_nothing(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.gateway, request)
    await world.settled()
    assert len(world.drafts(request)) == 5
    assert world.count("drafter_drafted_tokens") == WINDOW


async def test_a_session_begun_again_during_a_step_of_its_predecessor_lives(world: World) -> None:
    world.model.gate.shut()
    request = await world.speculate()
    await world.model.gate.held()
    await world.tell(world.gateway, Close(request.session_id, 1))
    again = await world.speculate(session_id=request.session_id, term=2)
    await world.settled()
    world.model.gate.open()
    assert await world.drafted(again, 0, WINDOW) == TEXT[:WINDOW]
    assert len(world.drafter.table) == 1
