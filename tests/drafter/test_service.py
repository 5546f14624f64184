"""A drafter on the bus: guesses out, verdicts in, silence, refusals, windows, reports. (Bad input: test_input.py.)"""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from awc.policy import DEFAULT_CHOICE
from shared import drafter_session, sampling
from shared.messages import Bias, Close, Draft, Echo, Failure, Heartbeat, Report, Sampling, Speculation, WindowDecision
from tests.drafter.conftest import PROMPT, TEXT, Start, World
from tests.fakes import VOCABULARY, answer, next_token, wrong
from tests.peers import until

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


def now_ms() -> float:
    return time.monotonic() * 1e3


async def test_a_new_session_polls_at_once_then_sends_its_window_in_chunks_and_no_more(world: World) -> None:
    request = await world.speculate()
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
    await world.settled()
    first, *chunks = world.drafts(request)
    assert (first.base, first.token_ids, first.epoch) == (len(PROMPT), (), 0)
    assert [len(draft.token_ids) for draft in chunks] == [2, 2, 2, 2]
    assert world.count("drafter_drafted") == WINDOW
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
        assert [fed for _, fed in world.model.steps[:4]] == [8, 8, 7, 1]  # the 7th guess and what is behind it
        await world.settled()
        assert world.count("drafter_drafted") == 2 * WINDOW  # feeding is not drafting


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
    assert world.count("drafter_drafted") == 3


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
    assert sum(world.fates().values()) == world.count("drafter_drafted") >= WINDOW


async def test_closing_discards_the_open_guesses_and_ends_the_session(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=2))
    await world.drafted(request, WINDOW, 2)
    await world.tell(world.gateway, Close(request.session_id, 1))
    await world.settled()
    assert len(world.drafter.table) == 0
    assert world.fates() == {"accepted": 2, "rejected": 0, "late": 0, "discarded": WINDOW}


# --- verifiers that say no, or nothing --------------------------------------------------------------------------------


async def test_an_unknown_session_is_waited_out_since_the_verifier_may_be_opening_it(world: World) -> None:
    request = await world.speculate()
    failure = Failure(request.session_id, 1, "unknown_session", "not yet", True)
    for _ in range(3):
        await world.tell(world.verifier, failure)
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:4], accepted=4))
    assert await world.drafted(request, WINDOW, 4) == TEXT[WINDOW : WINDOW + 4]


async def test_a_closed_session_ends_at_once(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, Failure(request.session_id, 1, "closed", "over", False))
    await world.settled()
    assert len(world.drafter.table) == 0
    assert world.fates()["discarded"] == WINDOW


async def test_failures_of_other_verifiers_or_terms_end_nothing(world: World) -> None:
    stranger = await world.meet("verifier", "stranger")
    request = await world.speculate()
    await world.tell(stranger, Failure(request.session_id, 1, "closed", "over", False))
    await world.tell(world.verifier, Failure(request.session_id, 0, "closed", "over", False))
    await world.tell(world.verifier, Failure("ab" * 16, 1, "closed", "over", False))
    await world.settled()
    assert world.dropped("stale failure") == 3
    assert len(world.drafter.table) == 1


async def quick_link(world: World, **options: object) -> object:
    """A session that has measured a round trip of nearly nothing, so that its patience is short."""
    request = await world.speculate(**options)
    poll = await world.verifier.find(Draft)
    await world.tell(world.verifier, world.verdict(request, 0, (), echo=Echo(poll.sent_ms, 0.0)))
    return request


async def test_silence_is_answered_by_sending_everything_unverified_again(world: World) -> None:
    request = await quick_link(world)
    await world.drafted(request, 0, WINDOW)
    again = await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
    assert (again.base, again.token_ids) == (len(PROMPT), tuple(TEXT[:WINDOW]))
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:5], accepted=5))
    assert await world.drafted(request, WINDOW, 5) == TEXT[WINDOW : WINDOW + 5]


async def test_a_lost_draft_of_a_session_that_waits_for_its_verdict_is_sent_again(world: World) -> None:
    await world.decide(4, chunk=4, free_run=False)
    request = await quick_link(world)
    await world.drafted(request, 0, 4)
    again = await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == 4)
    assert again.token_ids == tuple(TEXT[:4])


async def test_a_short_patience_is_not_kept_waiting_by_an_older_long_one(world: World) -> None:
    request = await quick_link(world)
    await world.drafted(request, 0, WINDOW)

    async def pause() -> float:
        asked = now_ms()
        await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
        return now_ms() - asked

    pauses = [await pause() for _ in range(6)]  # each about twice the one before
    await world.tell(world.verifier, world.verdict(request, 0, ()))
    assert await pause() < pauses[-1] / 2


async def test_a_verifier_that_stays_silent_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_session, "MAX_SILENT_TRIES", 3)
    request = await quick_link(world)
    await world.drafted(request, 0, WINDOW)
    for _ in range(3):
        await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
    await until(lambda: not len(world.drafter.table))
    assert world.fates()["discarded"] == WINDOW
    later = await world.speculate(prompt=(9,))
    assert await world.drafted(later, 0, WINDOW) == answer((9,), WINDOW)


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
    assert world.count("drafter_drafted") == WINDOW


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


# --- windows ----------------------------------------------------------------------------------------------------------


async def test_a_decision_changes_the_window_of_running_and_of_new_sessions(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.decide(12, chunk=3)
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    later = await world.speculate(prompt=(9,))
    assert await world.drafted(later, 0, 12) == answer((9,), 12)
    await world.settled()
    assert [len(draft.token_ids) for draft in world.drafts(later)] == [0, 3, 3, 3, 3]
    assert world.count("drafter_drafted") == 24


async def test_a_decision_says_whether_the_verifier_may_run_free(world: World) -> None:
    await world.decide(4, chunk=4, free_run=False)
    request = await world.speculate()
    await world.drafted(request, 0, 4)
    assert [(len(draft.token_ids), draft.free_run) for draft in world.drafts(request)] == [(0, False), (4, False)]


async def test_a_window_of_zero_stops_drafting(world: World) -> None:
    await world.decide(0, chunk=1)
    request = await world.speculate()
    await world.verifier.find(Draft)
    await world.settled()
    assert world.count("drafter_drafted") == 0
    assert [(draft.token_ids, draft.free_run) for draft in world.drafts(request)] == [((), True)]


async def test_a_window_that_shrinks_during_a_step_and_grows_again_costs_nothing_but_the_guess(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    world.model.gate.shut()
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:1], accepted=1))
    await world.model.gate.held()
    await world.decide(2)
    await world.settled()
    world.model.gate.open()
    state = world.drafter.table.get(request.session_id).state
    await until(lambda: state.computed == len(state.tokens))  # the guess behind them was thrown away
    await world.decide(12, sequence=2)
    assert await world.drafted(request, 0, 13) == TEXT[:13]
    assert world.count("drafter_failed_steps") == 0


async def test_a_window_ends_early_behind_an_unsure_guess_until_that_one_has_a_verdict(world: World) -> None:
    unsure = len(PROMPT) + 2
    world.model.logit = lambda position: 1.0 if position == unsure else 9.0
    await world.decide(WINDOW, chunk=WINDOW, min_confidence=0.5)
    request = await world.speculate()
    assert await world.drafted(request, 0, 3) == TEXT[:3]
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=2))
    await world.settled()
    assert [len(draft.token_ids) for draft in world.drafts(request)] == [0, 3]
    assert world.count("drafter_unsure") == 1
    await world.tell(world.verifier, world.verdict(request, 2, TEXT[2:3], accepted=1))
    assert await world.drafted(request, 3, WINDOW) == TEXT[3 : 3 + WINDOW]
    assert world.count("drafter_unsure") == 1


async def test_a_lowered_threshold_lets_a_stopped_session_go_on(world: World) -> None:
    await world.decide(WINDOW, min_confidence=0.5)
    request = await world.speculate()
    await world.drafted(request, 0, 1)
    await world.decide(WINDOW, sequence=2)
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]


async def test_a_request_with_a_window_of_its_own_is_not_steered(world: World) -> None:
    await world.decide(12, chunk=3)
    request = await world.speculate(speculation=Speculation("static", 5))
    await world.drafted(request, 0, 5)
    await world.decide(16, chunk=2, sequence=2)
    await world.settled()
    assert world.count("drafter_drafted") == 5


async def test_a_decision_for_somebody_else_or_an_older_one_is_dropped(world: World) -> None:
    await world.decide(12, sequence=5)
    await world.decide(3, sequence=5)
    await world.tell(
        world.controller, WindowDecision("other.0123456789ab", world.verifier.instance_id, 3, 2, True, "test", 9)
    )
    request = await world.speculate()
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    assert world.dropped("decision not followed") == 2


async def test_an_old_decision_gives_way_to_the_default_in_running_sessions_too(start: Start) -> None:
    async with start(decision_ttl_s=0.2, report_s=0.05) as world:
        await world.decide(2)
        request = await world.speculate()
        assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
        assert world.drafter.steering.choice(world.verifier.instance_id, now_ms()) == DEFAULT_CHOICE


async def test_a_draining_controller_is_left_for_the_other_at_once(world: World) -> None:
    second = await world.meet("controller", "zzz")
    await world.controller.beat()
    await second.beat()
    await world.decide(4, sequence=7)
    await world.decide(12, sequence=1, sender=second)
    await world.settled()
    assert world.dropped("decision not followed") == 1
    await world.controller.beat(draining=True)
    await world.decide(12, sequence=2, sender=second)
    await world.decide(4, sequence=8)
    request = await world.speculate()
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    assert world.dropped("decision not followed") == 2


async def test_nobody_can_say_in_a_controllers_name_that_it_leaves(world: World) -> None:
    stranger = await world.meet("controller", "stranger")
    await world.controller.beat()
    await stranger.beat(instance_id=world.controller.instance_id, draining=True)
    await world.decide(3, sequence=1, sender=stranger)
    await world.settled()
    assert world.dropped("foreign heartbeat") == 1
    assert world.dropped("decision not followed") == 1


# --- reports and heartbeats -------------------------------------------------------------------------------------------


async def test_a_report_tells_what_was_seen_of_a_verifier_since_the_last_one(start: Start) -> None:
    async with start(report_s=0.3) as world:
        world.model.is_right = lambda position: position != len(PROMPT) + 3
        request = await quick_link(world)
        await world.drafted(request, 0, WINDOW)
        await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=1))
        await until(lambda: sum(pair.matched for _, pair in pairs(world)) == 2)
        await world.drafted(request, WINDOW, 2)
        await world.tell(world.verifier, world.verdict(request, 2, TEXT[2:4], accepted=1, epoch=1))
        await world.drafted(request, 4, WINDOW, epoch=1)
        await world.tell(world.gateway, Close(request.session_id, 1))
        await world.settled()
        await world.controller.find(Report)
        await until(lambda: sum(pair.discarded for _, pair in pairs(world)) == WINDOW + 2 - 4 + WINDOW)
        seen = [pair for _, pair in pairs(world)]
        assert [sequence for sequence, _ in pairs(world)] == list(range(1, len(seen) + 1))
        totals = [sum(getattr(pair, name) for pair in seen) for name in ("drafted", "matched", "mismatched", "late")]
        assert totals == [2 * WINDOW + 2, 3, 1, 1]
        assert sum(pair.matched + pair.mismatched + pair.discarded for pair in seen) == 2 * WINDOW + 2
        assert {pair.verifier_id for pair in seen} == {world.verifier.instance_id}
        assert all(pair.window == WINDOW and pair.queue == 0.25 and pair.rtt_ms > 0 for pair in seen)
        assert all(pair.num_sessions == 0 or pair.context > len(PROMPT) for pair in seen)


def pairs(world: World) -> list:
    return [(report.sequence, pair) for report in world.controller.of(Report) for pair in report.pairs]


async def test_an_idle_drafter_reports_nothing(start: Start) -> None:
    async with start(report_s=0.05, heartbeat_s=0.05) as world:
        heard = len(world.gateway.heard)
        await until(lambda: len(world.gateway.heard) > heard + 4)
        assert world.controller.of(Report) == []


async def test_the_metrics_of_a_verifier_are_labelled_by_its_name_and_never_by_what_a_stranger_says(
    start: Start,
) -> None:
    async with start(report_s=0.05) as world:
        await world.tell(
            world.controller, WindowDecision(world.drafter.instance_id, "made-up.0123456789ab", 3, 2, True, "test", 1)
        )
        request = await world.speculate()
        await world.drafted(request, 0, WINDOW)
        await world.controller.find(Report)
        assert world.registry.get_sample_value("dsd_drafter_window", {"verifier": "cloud"}) == WINDOW
        assert world.registry.get_sample_value("dsd_drafter_min_confidence", {"verifier": "cloud"}) == 0
        assert world.registry.get_sample_value("dsd_drafter_window", {"verifier": "made-up"}) is None


async def test_a_heartbeat_tells_what_it_drafts_for_and_how_busy_it_is(start: Start) -> None:
    async with start(heartbeat_s=0.05, model_name="tiny", max_sessions=3, feed_tokens=32) as world:
        first = await world.gateway.find(Heartbeat)
        assert (first.service, first.instance_id, first.models) == ("drafter", world.drafter.instance_id, ["tiny"])
        assert (first.fingerprint, first.vocab_size, first.max_context) == ("fake-draft", 97, 1024)
        assert (first.interval_s, first.draining) == (0.05, False)
        world.model.gate.shut()
        await world.speculate(prompt=range(1, 50))
        busy = await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 1)
        assert (busy.load.max_sessions, busy.load.queue_tokens, busy.load.token_budget) == (3, 49, 32)


async def test_warming_up_measures_the_speed_of_drafting_and_of_prefill(world: World) -> None:
    await world.drafter.loop.warm_up()
    assert world.drafter.loop.step_ms > 0
    assert world.drafter.loop.prefill_ms > 0
    assert [fed for _, fed in world.model.steps] == [64, 64, 1, 1, 1, 1]


async def test_steps_of_several_sessions_take_turns(world: World) -> None:
    world.model.gate.shut()
    requests = [await world.speculate(prompt=(number, 2)) for number in (1, 2, 3)]
    await world.settled()
    world.model.gate.open()
    for request in requests:
        await world.drafted(request, 0, WINDOW)
    order = [first for first, _ in world.model.steps]
    assert order[:9] == [1, 2, 3] * 3
