"""The rules of docs/protocol.md on the drafter's side, one by one."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from shared.protocol.drafter_session import MAX_SILENT_TRIES, DrafterSession, RoundTrip
from shared.protocol.messages import Draft, Echo, Sampling, Speculate, Speculation, Tally, TokenIds, Verdict

SESSION = "ab" * 16
VERIFIER, OTHER_VERIFIER = "cloud.0123456789ab", "cloud.ba9876543210"
PROMPT = (1, 2, 3)
STOP = 0


def request(
    term: int = 1, committed: tuple[int, ...] = (), max_tokens: int = 50, verifier_id: str = VERIFIER
) -> Speculate:
    return Speculate(
        SESSION, term, verifier_id, TokenIds(PROMPT), TokenIds(committed), Sampling(), TokenIds((STOP,)), max_tokens,
        Speculation(),
    )  # fmt: skip


def session(window: int = 8, chunk: int = 2, free_run: bool = True, **options) -> DrafterSession:
    """A session that has sent its first poll."""
    state = DrafterSession.started(request(**options), window, chunk, free_run, now=0.0)
    assert state.take_draft(0.0).token_ids == ()
    return state


def guess(state: DrafterSession, *tokens: int, now: float = 0.0, confidence: float = 1.0) -> list[Draft]:
    """Drafts `tokens`; returns the Drafts that became due."""
    sent = []
    for token in tokens:
        step = state.begin_step(64)
        assert step.draws
        state.end_step(step, token, confidence)
        while (message := state.take_draft(now)) is not None:
            sent.append(message)
    return sent


def verdict(base: int, *ids: int, accepted: int = 0, epoch: int = 0, term: int = 1, finish=None, echo=None) -> Verdict:
    return Verdict(SESSION, term, epoch, base, TokenIds(ids), accepted, finish, echo, 20.0, 1, 0.0, Tally())


def counts(state: DrafterSession) -> tuple[int, int, int, int]:
    fates = state.fates
    assert state.drafted == fates.total + state.num_guesses
    return fates.accepted, fates.rejected, fates.late, fates.discarded


def test_a_new_session_polls_at_once_so_that_verdicts_flow_during_its_prefill() -> None:
    state = DrafterSession.started(request(), 8, 2, True, now=5.0)
    first = state.take_draft(5.0)
    assert (first.base, first.token_ids, first.epoch) == (3, (), 0)
    assert state.take_draft(5.0) is None


def test_guesses_are_sent_in_chunks_while_drafting_goes_on() -> None:
    state = session(window=6, chunk=2)
    sent = guess(state, 7, 8, 9, 6)
    assert [(draft.base, draft.token_ids) for draft in sent] == [(3, (7, 8)), (5, (9, 6))]
    assert state.wants_step


def test_a_full_window_is_sent_even_when_the_last_chunk_is_not_full() -> None:
    state = session(window=3, chunk=2)
    assert [draft.token_ids for draft in guess(state, 7, 8, 9)] == [(7, 8), (9,)]
    assert not state.wants_step


def test_stop_and_wait_is_a_chunk_as_large_as_the_window() -> None:
    state = session(window=4, chunk=4, free_run=False)
    (only,) = guess(state, 7, 8, 9, 6)
    assert only.token_ids == (7, 8, 9, 6)
    assert not state.wants_step
    state.on_verdict(verdict(3, 7, 8, 9, 6, 5, accepted=4), now=1.0)
    assert state.num_guesses == 0
    assert state.wants_step


def test_a_verdict_for_part_of_a_window_splits_it_into_trains_until_a_guess_is_wrong() -> None:
    """The verifier committed two tokens before the window came. So at an acceptance of 1 two halves of a window are
    under way in turn, and stop-and-wait is faster than its formula."""
    state = session(window=4, chunk=4, free_run=False)
    guess(state, 7, 8, 9, 6)
    state.on_verdict(verdict(3, 7, 8), now=1.0)
    assert [draft.token_ids for draft in guess(state, 5, 4)] == [(5, 4)], "the window is full"
    state.on_verdict(verdict(5, 9, 6, accepted=2), now=2.0)
    assert [draft.token_ids for draft in guess(state, 3, 2)] == [(3, 2)], "and so it goes on"
    state.on_verdict(verdict(7, 1, epoch=1), now=3.0)
    assert [draft.token_ids for draft in guess(state, 9, 8, 7, 6)] == [(9, 8, 7, 6)]


def test_right_guesses_stay_and_the_bonus_token_is_taken() -> None:
    state = session()
    guess(state, 7, 8)
    state.on_verdict(verdict(3, 7, 8, 9, accepted=2), now=1.0)
    assert state.tokens == [1, 2, 3, 7, 8, 9]
    assert counts(state) == (2, 0, 0, 0)
    assert state.epoch == 0


def test_at_the_first_difference_the_rest_is_dropped_and_the_epoch_rises() -> None:
    state = session()
    guess(state, 7, 8, 9, 6)
    state.on_verdict(verdict(3, 7, 5, accepted=1, epoch=1), now=1.0)
    assert state.tokens == [1, 2, 3, 7, 5]
    assert counts(state) == (1, 1, 0, 2)
    assert (state.epoch, state.sent, state.computed) == (1, 5, 4)


def test_a_right_guess_that_the_verifier_did_not_use_counts_as_late() -> None:
    state = session()
    guess(state, 7, 8)
    state.on_verdict(verdict(3, 7, accepted=0), now=1.0)
    assert counts(state) == (0, 0, 1, 0)
    assert state.num_guesses == 1


def test_when_the_verifier_ran_ahead_its_tokens_are_fed_together() -> None:
    state = session()
    guess(state, 7)
    state.on_verdict(verdict(3, 7, 8, 9, 6), now=1.0)
    step = state.begin_step(64)
    assert (step.start, step.fed_ids, step.draws) == (3, (7, 8, 9, 6), True)


def test_when_the_verifier_ran_ahead_the_next_draft_begins_behind_its_tokens() -> None:
    state = session()
    state.on_verdict(verdict(3, 7, 8, 9), now=1.0)
    (sent,) = guess(state, 6, 5)
    assert (sent.base, sent.token_ids) == (6, (6, 5))


def test_forced_tokens_follow_a_guess_as_far_as_the_window_has_room() -> None:
    state = session(window=4, chunk=2)
    assert state.end_step(state.begin_step(64), 7, 1.0, (8, 9))
    assert state.take_draft(0.0).token_ids == (7, 8, 9)
    assert state.begin_step(64).fed_ids == (7, 8, 9)
    state = session(window=2, chunk=2)
    assert state.end_step(state.begin_step(64), 7, 1.0, (8, 9))
    assert state.take_draft(0.0).token_ids == (7, 8)
    assert not state.wants_step
    assert state.drafted == 2


def test_catching_up_takes_several_steps_and_only_the_last_one_draws() -> None:
    state = session()
    step = state.begin_step(2)
    assert (step.fed_ids, step.draws) == ((1, 2), False)
    assert not state.end_step(step, 9)
    assert state.begin_step(2).draws


def test_what_is_taken_over_is_not_fed_and_is_rolled_back_as_what_was_fed() -> None:
    state = session()
    state.take_over(2)
    assert (state.num_todo, state.begin_step(64).fed_ids) == (1, (3,))
    rebound = session()
    rebound.take_over(2)
    rebound.rebind(replace(request(term=2), prompt_ids=TokenIds((1, 9, 3))), now=1.0)
    assert rebound.begin_step(64).fed_ids == (9, 3)


def test_a_step_begun_before_a_rollback_is_thrown_away() -> None:
    state = session()
    guess(state, 7, 8)
    step = state.begin_step(64)
    state.on_verdict(verdict(3, 5, epoch=1), now=1.0)
    assert not state.end_step(step, 9)
    assert state.tokens == [1, 2, 3, 5]
    assert state.begin_step(64).fed_ids == (5,)


def test_a_step_in_flight_survives_a_verdict_that_confirms_it() -> None:
    state = session()
    guess(state, 7)
    step = state.begin_step(64)
    state.on_verdict(verdict(3, 7, accepted=1), now=1.0)
    assert state.end_step(step, 8)
    assert state.tokens == [1, 2, 3, 7, 8]


def test_a_step_overtaken_by_the_verifier_keeps_its_cache_but_not_its_guess() -> None:
    state = session()
    step = state.begin_step(64)
    state.on_verdict(verdict(3, 7), now=1.0)
    assert not state.end_step(step, 7)
    assert (state.computed, state.drafted) == (3, 0)


ANSWER_MS = 12.0 + 2 * 20.0  # what an answer may take in a gapped session: srtt + 4 var, the pass under way and its own


def gapped(window: int = 2) -> DrafterSession:
    """A session with a full window whose next verdict was lost, at 100 ms, when the one behind that has come."""
    state = session(window=window)
    state.on_verdict(verdict(3, 7, echo=Echo(96.0, 0.0)), now=100.0)
    guess(state, *range(10, 10 + window), now=100.0)
    state.on_verdict(verdict(6, 9), now=100.0)
    return state


def test_a_verdict_above_the_committed_length_makes_one_poll_from_there_in_the_time_of_an_answer() -> None:
    state = gapped()
    state.on_verdict(verdict(7, 9), now=100.0)
    poll = state.take_draft(100.0)
    assert (poll.base, poll.token_ids) == (4, ())
    for now in (100.0, 120.0, 100.0 + ANSWER_MS - 1):
        state.on_verdict(verdict(8, 9), now=now)
        assert state.take_draft(now) is None
    assert state.tokens == [1, 2, 3, 7, 10, 11]


def test_a_poll_without_an_answer_is_made_again_though_verdicts_go_on_arriving() -> None:
    state = gapped()
    every_ms, polled = 5, []
    for now in range(100, 400, every_ms):
        state.on_verdict(verdict(8, 9), now=now)
        assert state.on_timer(now) is None, "the verifier is not silent"
        while (draft := state.take_draft(now)) is not None:
            assert (draft.base, draft.token_ids) == (4, ())
            polled.append(now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(polled)]
    assert len(pauses) == 300 // (ANSWER_MS + every_ms)
    assert all(ANSWER_MS <= pause < ANSWER_MS + every_ms for pause in pauses)


def test_the_answer_of_a_poll_fills_the_gap_and_the_next_gap_is_polled_at_once() -> None:
    state = gapped()
    state.take_draft(100.0)
    state.on_verdict(verdict(4, 10, 8, 9, accepted=1, epoch=1), now=110.0)
    assert state.tokens == [1, 2, 3, 7, 10, 8, 9]
    state.on_verdict(verdict(9, 9, epoch=1), now=111.0)
    assert state.take_draft(111.0).base == 7


def test_an_empty_verdict_of_a_newer_epoch_makes_one_rewind() -> None:
    state = session()
    guess(state, 7, 8)
    state.on_verdict(verdict(3, epoch=1), now=1.0)
    again = state.take_draft(1.0)
    assert (again.base, again.token_ids, again.epoch) == (3, (7, 8), 1)
    state.on_verdict(verdict(3, epoch=1), now=1.0)
    assert state.take_draft(1.0) is None
    assert counts(state) == (0, 0, 0, 0)


def test_verdicts_of_other_terms_are_dropped() -> None:
    state = session()
    assert not state.on_verdict(verdict(3, 9, term=2), now=1.0)
    assert state.tokens == [1, 2, 3]


def test_a_repeated_verdict_changes_nothing() -> None:
    state = session()
    guess(state, 7, 8)
    for _ in range(3):
        state.on_verdict(verdict(3, 7, 9, accepted=1, epoch=1), now=1.0)
    assert state.tokens == [1, 2, 3, 7, 9]
    assert counts(state) == (1, 1, 0, 0)


def test_finish_closes_the_session_and_discards_what_is_open() -> None:
    state = session()
    guess(state, 7, 8, 9)
    state.on_verdict(verdict(3, 7, STOP, accepted=1, finish="stop"), now=1.0)
    assert state.closed
    assert counts(state) == (1, 1, 0, 1)
    assert state.take_draft(2.0) is None
    assert not state.wants_step


def test_nothing_is_drafted_behind_an_own_stop_id_or_max_tokens() -> None:
    state = session()
    guess(state, STOP)
    assert not state.wants_step
    assert state.sent == 4  # it was sent though the chunk is not full
    state = session(max_tokens=2)
    guess(state, 7, 8)
    assert not state.wants_step


def stopped(window: int = 8, chunk: int = 4, free_run: bool = True) -> tuple[DrafterSession, list[Draft]]:
    """A session with a sure and an unsure guess, and what it has sent of them."""
    state = session(window, chunk, free_run)
    state.steer(window, chunk, free_run, 0.5)
    return state, [*guess(state, 7, confidence=0.5), *guess(state, 8, confidence=0.49)]


@pytest.mark.parametrize("free_run", [True, False])
def test_a_window_ends_early_behind_an_unsure_guess_and_is_sent_at_once(free_run: bool) -> None:
    state, sent = stopped(free_run=free_run)
    assert [(draft.base, draft.token_ids) for draft in sent] == [(3, (7, 8))]  # the chunk is not full
    assert state.is_unsure
    assert not state.wants_step
    assert state.resend_at is not None


def test_a_window_that_is_unsure_from_the_first_guess_on_is_not_empty() -> None:
    state = session(window=8, chunk=8, free_run=False)
    state.steer(8, 8, False, 1.0)
    (sent,) = guess(state, 7, confidence=0.99)
    assert sent.token_ids == (7,)


def test_drafting_goes_on_when_the_unsure_guess_was_right() -> None:
    state, _ = stopped()
    state.on_verdict(verdict(3, 7, accepted=1), now=1.0)
    assert not state.wants_step  # not before that position is fixed
    state.on_verdict(verdict(4, 8, 9, accepted=1), now=2.0)
    assert guess(state, 6, 5, 4, 3)[0].token_ids == (6, 5, 4, 3)
    assert counts(state) == (2, 0, 0, 0)


def test_drafting_goes_on_when_the_unsure_guess_was_wrong() -> None:
    state, _ = stopped()
    state.on_verdict(verdict(3, 7, 5, accepted=1, epoch=1), now=1.0)
    assert guess(state, 6, 5, 4, 3)[0].base == 5
    assert counts(state) == (1, 1, 0, 0)


def test_drafting_goes_on_when_a_guess_before_the_unsure_one_was_wrong() -> None:
    state, _ = stopped()
    state.on_verdict(verdict(3, 9, epoch=1), now=1.0)
    (sent,) = guess(state, 6, 5, 4, 3)  # the first of them is where the unsure one was
    assert sent.token_ids == (6, 5, 4, 3)
    assert counts(state) == (0, 1, 0, 1)


def test_drafting_goes_on_behind_a_verifier_that_ran_ahead_of_an_unsure_guess() -> None:
    state, _ = stopped()
    state.on_verdict(verdict(3, 7, 8, 9, 6), now=1.0)
    assert state.begin_step(64).fed_ids == (8, 9, 6)


def test_a_rewind_sends_the_unsure_guess_again_and_adds_none() -> None:
    state, _ = stopped()
    state.on_verdict(verdict(3, epoch=1), now=1.0)
    assert state.take_draft(1.0).token_ids == (7, 8)
    assert not state.wants_step


def test_an_unsure_guess_does_not_stop_the_session_under_another_term() -> None:
    state, _ = stopped()
    state.rebind(request(term=2, committed=(7, 8)), now=1.0)
    assert state.wants_step


def test_a_lower_threshold_takes_effect_at_once() -> None:
    state, _ = stopped()
    state.steer(8, 4, True, 0.4)
    assert state.wants_step


def test_a_higher_threshold_ends_the_window_behind_the_newest_guess_and_sends_it() -> None:
    state = session(window=8, chunk=4)
    assert guess(state, 7, confidence=0.6) == []
    state.steer(8, 4, True, 0.7)
    assert state.take_draft(0.0).token_ids == (7,)
    assert not state.wants_step


def test_without_a_threshold_no_guess_is_unsure() -> None:
    state = session()
    guess(state, 7, confidence=0.0)
    assert state.wants_step


def test_speculate_with_a_higher_term_rebinds_and_keeps_the_common_cache() -> None:
    state = session()
    guess(state, 7, 8, 9)
    state.rebind(request(term=2, committed=(7, 6)), now=1.0)
    assert (state.tokens, state.computed, state.epoch) == ([1, 2, 3, 7, 6], 4, 0)
    assert counts(state) == (0, 0, 0, 3)
    assert state.take_draft(1.0).base == 5


def measured() -> DrafterSession:
    """A session that has measured a round trip of 4 ms and a pass of 20 ms."""
    state = session()
    state.on_verdict(verdict(3, 7, echo=Echo(96.0, 0.0)), now=100.0)
    assert state.resend_at == 100.0 + ANSWER_MS
    return state


def test_another_verifier_s_round_trip_and_pass_time_are_measured_afresh() -> None:
    state = measured()
    state.rebind(request(term=2, committed=(7,), verifier_id=OTHER_VERIFIER), now=200.0)
    assert state.round_trip.mean_ms is None
    assert state.resend_at == 200.0 + RoundTrip().timeout_ms


def test_the_same_verifier_s_round_trip_and_pass_time_outlive_a_rebinding() -> None:
    state = measured()
    state.rebind(request(term=2, committed=(7,)), now=200.0)
    assert state.round_trip.mean_ms == 4.0
    assert state.resend_at == 200.0 + ANSWER_MS


def test_silence_is_answered_by_resending_from_committed_with_growing_pauses() -> None:
    state = session()
    guess(state, 7, 8)
    first = state.resend_at
    assert state.on_timer(first - 1) is None
    again = state.on_timer(first)
    assert (again.base, again.token_ids) == (3, (7, 8))
    assert state.resend_at - first > first


def test_a_guess_that_just_missed_a_pass_is_not_sent_again() -> None:
    state = session()
    pass_ms = 20.0
    state.on_verdict(verdict(3, 7, echo=Echo(96.0, 2.0)), now=100.0)
    (sent,) = guess(state, 8, 9, now=100.0)
    assert sent.base == 4
    assert state.on_timer(100.0 + 2 * pass_ms + 2.0) is None, "the pass under way, its own, and the round trip"
    assert state.on_timer(100.0 + 3 * pass_ms) is not None


def test_after_too_many_silent_tries_the_session_closes() -> None:
    state = session()
    for _ in range(MAX_SILENT_TRIES):
        assert state.on_timer(state.resend_at) is not None
    assert state.on_timer(state.resend_at) is None
    assert state.closed


@pytest.mark.parametrize("echo", [Echo(0.0, 0.0), Echo(1e15, 0.0), Echo(0.0, 1e15)])
def test_a_verifier_that_tells_of_long_times_and_falls_silent_holds_a_session_for_minutes(echo: Echo) -> None:
    state, now = session(), 1e9
    state.on_verdict(replace(verdict(3, 7, echo=echo), compute_ms=1e15), now=now)
    for _ in range(MAX_SILENT_TRIES + 1):
        state.on_timer(state.resend_at)
        now = state._quiet_since
    assert state.closed
    assert now - 1e9 <= 60_000.0 * MAX_SILENT_TRIES
    assert state.round_trip.mean_ms <= 60_000.0, "heartbeats tell it to all gateways"


def test_a_verdict_ends_the_silence() -> None:
    state = session()
    state.on_timer(state.resend_at)
    state.on_verdict(verdict(3), now=5000.0)
    assert state.resend_at == 5000.0 + 1000.0 + 2 * 20.0


def test_where_the_answer_goes_on_behind_the_limit_the_verifier_is_let_go_on_alone() -> None:
    state = session(window=4, chunk=4, free_run=False, max_tokens=3)
    (draft,) = guess(state, 7, 8, 9)
    assert (draft.token_ids, draft.free_run) == ((7, 8, 9), False)
    state.on_verdict(verdict(3, 7, 8, 9, 6, accepted=3), now=1.0)
    last = state.take_draft(1.0)
    assert (last.base, last.token_ids, last.free_run) == (7, (), True)
    assert state.closed
    assert state.take_draft(1.0) is None
    assert counts(state) == (3, 0, 0, 0)


def test_without_free_run_and_open_guesses_no_verdict_is_owed() -> None:
    assert session(free_run=False).resend_at is None


def test_rtt_comes_from_the_echo_less_the_hold_time() -> None:
    state = session()
    state.on_verdict(verdict(3, echo=Echo(sent_ms=100.0, hold_ms=30.0)), now=180.0)
    assert state.round_trip.mean_ms == 50.0


def test_the_round_trip_is_smoothed_as_rfc_6298_says() -> None:
    trip = RoundTrip()
    assert trip.timeout_ms == 1000.0
    trip.observe(100.0)
    assert (trip.mean_ms, trip.deviation_ms) == (100.0, 50.0)
    trip.observe(60.0)
    assert trip.mean_ms == pytest.approx(95.0)
    assert trip.deviation_ms == pytest.approx(47.5)


def test_a_smaller_window_keeps_open_guesses_but_adds_none() -> None:
    state = session(window=8)
    guess(state, 7, 8, 9, 6)
    state.steer(2, 2, True)
    assert not state.wants_step
    assert state.num_guesses == 4


def test_a_window_of_nothing_lets_the_verifier_run_free() -> None:
    state = session()
    state.steer(0, 1, False)
    assert state.free_run
    assert not state.wants_step


def test_a_dropped_cache_is_fed_again_from_the_first_token() -> None:
    state = session()
    guess(state, 7)
    step = state.begin_step(64)
    state.drop_cache()
    assert not state.end_step(step, 8)
    assert state.begin_step(64).fed_ids == (1, 2, 3, 7)
