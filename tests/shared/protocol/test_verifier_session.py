"""The rules of docs/protocol.md on the verifier's side, one by one."""

from __future__ import annotations

import pytest
from msgspec import structs

from shared.protocol.guesses import Survival
from shared.protocol.kept_logprobs import MAX_TOLD_WITH_LOGPROBS
from shared.protocol.messages import (
    MAX_WINDOW,
    NO_TOKENS,
    Draft,
    Open,
    Poll,
    Sampling,
    TokenIds,
    TokenLogprobs,
    Verdict,
    decode,
    encode,
)
from shared.protocol.pass_row import PassInfo
from shared.protocol.retelling import MAX_RETOLD, RETOLD_MS
from shared.protocol.verifier_session import VerifierSession

SESSION = "ab" * 16
DRAFTER = "edge.0123456789ab"
PROMPT = (1, 2, 3)
STOP = 0
COMMITTED_AT = 50.0  # when `run_pass` ends


def opening(term: int = 1, committed: tuple[int, ...] = (), max_tokens: int = 20, free_run: bool = True) -> Open:
    return Open(
        SESSION,
        term,
        DRAFTER,
        TokenIds(PROMPT),
        TokenIds(committed),
        Sampling(),
        TokenIds((STOP,)),
        max_tokens,
        free_run,
    )


def session(**options) -> VerifierSession:
    return VerifierSession.opened(opening(**options), "gw.0123456789ab", now=0.0)


def draft(base: int, *ids: int, epoch: int = 0, term: int = 1, free_run: bool = True, sent_ms: float = 1.0) -> Draft:
    return Draft(SESSION, term, epoch, base, TokenIds(ids), free_run, sent_ms)


def run_pass(
    state: VerifierSession, draws: list[int], max_tokens: int = 64, max_guesses: int = 64, now: float = COMMITTED_AT
) -> Verdict | None:
    row = state.begin_pass(max_tokens, max_guesses)
    return state.end_pass(row, draws[: row.num_draws], PassInfo(20.0, 1, 0.1), now)


def decoding(*tokens: int, **options) -> VerifierSession:
    """A session that has committed `tokens` behind the prompt, one at a time."""
    state = session(**options)
    for token in tokens:
        run_pass(state, [token])
    assert state.tokens == [*PROMPT, *tokens]
    return state


def test_alone_a_session_commits_one_token_a_pass() -> None:
    state = session()
    verdict = run_pass(state, [7])
    assert (verdict.base, verdict.token_ids, verdict.accepted) == (3, (7,), 0)
    assert run_pass(state, [8]).base == 4


def test_guesses_equal_to_the_draws_are_accepted_and_the_next_draw_is_a_bonus() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    verdict = run_pass(state, [8, 9, 5])
    assert (verdict.token_ids, verdict.accepted) == ((8, 9, 5), 2)
    assert state.computed == state.length - 1


def test_at_the_first_difference_the_targets_own_token_is_taken_and_the_epoch_rises() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    verdict = run_pass(state, [8, 4, 1, 1])
    assert (verdict.token_ids, verdict.accepted, verdict.epoch) == ((8, 4), 1, 1)
    assert (state.guesses.fates.accepted, state.guesses.fates.rejected, state.guesses.fates.discarded) == (1, 1, 1)
    assert state.guesses.pending == []


def test_a_guess_may_ride_on_the_last_draw_without_being_fed() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    row = state.begin_pass(max_tokens=1, max_guesses=0)
    assert (row.fed_ids, row.guesses) == ((7,), (8,))
    verdict = state.end_pass(row, [8], PassInfo(), now=2.0)
    assert (verdict.token_ids, verdict.accepted) == ((8,), 1)
    assert state.guesses.pending == [9]


def test_a_frozen_row_does_not_change_when_drafts_arrive_during_the_pass() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8), now=1.0)
    row = state.begin_pass(64, 64)
    state.on_draft(draft(5, 9, 6), now=2.0)
    assert row.guesses == (8,)
    verdict = state.end_pass(row, [8, 9], PassInfo(), now=3.0)
    assert (verdict.token_ids, verdict.accepted) == ((8, 9), 1)
    assert (state.guesses.fates.accepted, state.guesses.fates.late, state.guesses.pending) == (1, 1, [6])


def test_a_draft_of_a_newer_epoch_during_a_pass_does_not_touch_the_result() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    row = state.begin_pass(64, 64)
    state.on_draft(draft(4, 5, 5, epoch=3), now=2.0)
    verdict = state.end_pass(row, [8, 9, 6], PassInfo(), now=3.0)
    assert (verdict.token_ids, verdict.accepted) == ((8, 9, 6), 2)
    assert verdict.epoch == 4  # the newer guesses differ from what was committed
    assert (state.guesses.fates.accepted, state.guesses.fates.rejected, state.guesses.fates.discarded) == (2, 1, 1)


def test_a_base_below_committed_is_answered_with_a_verdict_from_there_on() -> None:
    state = decoding(7, 8, 9)
    answer = state.on_draft(draft(4), now=1.0)
    assert (answer.base, answer.token_ids, answer.accepted) == (4, (8, 9), 0)


def test_answers_to_drafts_repeat_a_bounded_number_of_tokens() -> None:
    num = MAX_RETOLD + 100
    state = session(committed=(7,) * num, max_tokens=num)
    first = state.on_draft(draft(3), now=1.0)
    assert (first.base, len(first.token_ids), first.finish) == (3, MAX_RETOLD, None)
    assert state.on_draft(draft(3), now=1.0) is None
    assert state.on_draft(draft(3 + num), now=1.0).finish == "length", "that repeats no token"
    rest = state.on_draft(draft(3 + MAX_RETOLD), now=1.0 + RETOLD_MS)
    assert (rest.base, len(rest.token_ids), rest.finish) == (3 + MAX_RETOLD, 100, "length")
    assert len(state.on_poll(Poll(SESSION, 1, 3), now=2.0).token_ids) == num, "a gateway gets all"


def test_a_flood_of_polls_is_told_a_bounded_number_of_tokens() -> None:
    state = session(committed=(7,) * 5000, max_tokens=9000)
    answers = [state.on_draft(draft(0, epoch=i), now=0.1 * i) for i in range(10_000)]
    assert sum(len(answer.token_ids) for answer in answers if answer) <= MAX_RETOLD * (1 + 1000 / RETOLD_MS)


def test_a_repeated_draft_gets_the_same_verdict() -> None:
    state = decoding(7, 8, 9)
    first = state.on_draft(draft(4, 8), now=1.0)
    assert state.on_draft(draft(4, 8), now=1.0) == first
    assert state.guesses.fates.late == 1


def test_guesses_behind_a_late_one_that_was_right_live_on() -> None:
    state = decoding(7, 8)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    assert state.guesses.fates.late == 1
    assert state.guesses.pending == [9, 6]


def test_a_guess_that_a_later_one_overtook_gets_its_fate_once() -> None:
    state = decoding(7, 8)
    for base, guess in ((3, 7), (5, 9), (4, 8), (4, 8)):
        state.on_draft(draft(base, guess), now=1.0)
    assert (state.guesses.fates.late, state.guesses.fates.total, state.guesses.pending) == (2, 2, [9])


def test_told_tokens_told_back_raise_no_survival() -> None:
    state = decoding(7, 8, 9)
    for epoch in range(20):
        state.on_draft(draft(3, 7, 8, 9, epoch=epoch), now=1.0)
    assert state.guesses.survival.probability == Survival().probability


def test_guesses_that_came_before_their_token_count_for_survival() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8), now=1.0)
    row = state.begin_pass(64, 64)
    state.on_draft(draft(5, 9), now=2.0)
    state.end_pass(row, [8, 9], PassInfo(), now=3.0)
    assert state.guesses.survival.comparisons > 1.9


def test_a_committed_position_is_judged_once_in_a_term() -> None:
    state = decoding(7, 8, 9)
    for epoch, guesses in enumerate([(7, 8, 9), (7, 8, 9), (7, 5, 5), (7, 8, 9)]):
        state.on_draft(draft(3, *guesses, epoch=epoch), now=1.0)
    fates = state.guesses.fates
    assert (fates.late, fates.rejected, fates.discarded) == (3, 0, 9)
    state.on_draft(draft(6, 5, epoch=9), now=1.0)
    run_pass(state, [4])
    state.on_draft(draft(6, 4, epoch=11), now=1.0)
    assert (fates.late, fates.rejected, fates.discarded) == (3, 1, 10)
    state.rebind(opening(term=2), now=2.0)
    state.on_draft(draft(3, 7, term=2), now=2.0)
    assert (fates.late, fates.discarded) == (3, 11), "committed before the term"


def test_a_late_guess_that_was_wrong_raises_the_epoch() -> None:
    state = decoding(7, 8)
    answer = state.on_draft(draft(4, 9, 9), now=1.0)
    assert (answer.base, answer.token_ids, answer.epoch) == (4, (8,), 1)
    assert (state.guesses.fates.rejected, state.guesses.fates.discarded) == (1, 1)


def test_a_gap_is_answered_with_an_empty_verdict_at_the_committed_length_and_a_new_epoch() -> None:
    state = decoding(7)
    answer = state.on_draft(draft(6, 9), now=1.0)
    assert (answer.base, answer.token_ids, answer.epoch) == (4, (), 1)


def test_drafts_below_the_epoch_are_answered_but_change_nothing() -> None:
    state = decoding(7)
    state.on_draft(draft(6, 9), now=1.0)
    answer = state.on_draft(draft(4, 8, epoch=0), now=2.0)
    assert (answer.base, answer.token_ids, answer.epoch) == (4, (), 1)
    assert state.guesses.pending == []


def test_one_gap_makes_one_rise_of_the_epoch() -> None:
    state = decoding(7)
    for base in (6, 8, 10):
        answer = state.on_draft(draft(base, 9, 9), now=1.0)
    assert answer.epoch == 1


def test_overlap_with_pending_guesses_of_one_epoch_is_dropped() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    assert state.on_draft(draft(5, 9, 6), now=1.0) is None
    assert state.guesses.pending == [8, 9, 6]


def test_an_empty_draft_at_the_committed_length_is_answered_as_a_sign_of_life() -> None:
    state = decoding(7)
    answer = state.on_draft(draft(4), now=1.0)
    assert (answer.base, answer.token_ids, answer.epoch) == (4, (), 0)


def test_drafts_of_other_terms_are_dropped() -> None:
    state = decoding(7)
    assert state.on_draft(draft(4, 8, term=2), now=1.0) is None
    assert state.on_draft(draft(3, 8, term=0), now=1.0) is None
    assert state.guesses.pending == []


def test_nothing_is_committed_behind_a_stop_id() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, STOP, 9), now=1.0)
    verdict = run_pass(state, [8, STOP, 9, 9])
    assert (verdict.token_ids, verdict.finish) == ((8, STOP), "stop")
    assert not state.ready
    assert state.guesses.fates.discarded == 1


def test_nothing_is_committed_behind_max_tokens_bonus_included() -> None:
    state = decoding(7, max_tokens=3)
    state.on_draft(draft(4, 8, 9, 6, 6), now=1.0)
    row = state.begin_pass(64, 64)
    assert row.num_draws == 2
    verdict = state.end_pass(row, [8, 9], PassInfo(), now=2.0)
    assert (verdict.token_ids, verdict.finish) == ((8, 9), "length")


def test_a_finished_session_tells_every_draft_that_it_is_finished() -> None:
    state = decoding(7, STOP)
    answer = state.on_draft(draft(4, 9, epoch=5), now=1.0)
    assert (answer.token_ids, answer.finish) == ((STOP,), "stop")
    assert state.on_draft(draft(5, 9), now=1.0).finish == "stop"


def test_a_prompt_is_computed_in_chunks_and_only_the_last_one_draws() -> None:
    state = session()
    row = state.begin_pass(max_tokens=2, max_guesses=8)
    assert (row.fed_ids, row.num_draws) == ((1, 2), 0)
    assert state.end_pass(row, [], PassInfo(), now=1.0) is None
    row = state.begin_pass(max_tokens=2, max_guesses=8)
    assert (row.start, row.fed_ids, row.num_draws) == (2, (3,), 1)


def test_a_pass_that_falls_short_of_the_text_offers_its_guesses_again() -> None:
    """An engine that ran out of KV cache may have lost all of it."""
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    row = state.begin_pass(64, 64)
    state.on_draft(draft(6, 6), now=2.0)
    assert state.end_pass(row, [], PassInfo(), now=3.0, computed=0) is None
    assert (state.computed, state.num_todo, state.guesses.pending, state.guesses.base) == (0, 4, [8, 9, 6], 4)
    row = state.begin_pass(64, 64)
    assert (row.start, row.fed_ids, row.guesses) == (0, (*PROMPT, 7, 8, 9, 6), (8, 9, 6))


def test_guesses_that_a_pass_had_no_draw_for_are_offered_again_if_those_before_were_right() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    verdict = state.end_pass(state.begin_pass(64, 64), [8], PassInfo(), now=2.0)
    assert (verdict.token_ids, verdict.accepted, verdict.epoch) == ((8,), 1, 0)
    assert (state.guesses.pending, state.guesses.base, state.num_todo) == ([9, 6], 5, 1)
    run_pass(state, [9, 6, 5])
    assert (state.tally.accepted, state.tally.rejected, state.tally.discarded) == (3, 0, 0)


def test_guesses_without_a_draw_are_discarded_when_the_one_before_was_wrong_or_the_term_is_over() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    state.end_pass(state.begin_pass(64, 64), [5], PassInfo(), now=2.0)
    assert (state.guesses.pending, state.tally.rejected, state.tally.discarded) == ([], 1, 2)
    state.on_draft(draft(5, 8, epoch=1), now=3.0)
    row = state.begin_pass(64, 64)
    state.rebind(opening(term=2, committed=(7,)), now=4.0)
    state.end_pass(row, [], PassInfo(), now=5.0, computed=2)
    assert (state.guesses.pending, state.computed, state.tally.discarded) == ([], 2, 3)


def test_a_rejected_tail_leaves_the_cache_by_length() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    run_pass(state, [8, 4, 1, 1])
    row = state.begin_pass(64, 64)
    assert (row.start, row.fed_ids) == (5, (4,))


def test_a_rebinding_with_a_higher_term_keeps_the_cache_and_hears_only_the_new_term() -> None:
    state = decoding(7, 8)
    state.rebind(opening(term=2, committed=(7,)), now=5.0)
    assert state.tokens == [*PROMPT, 7, 8]
    assert state.computed == 4
    assert state.on_draft(draft(5, 9, term=1), now=6.0) is None
    state.on_draft(draft(5, 9, term=2), now=6.0)
    assert state.guesses.pending == [9]


def test_a_rebinding_with_another_text_follows_the_gateway_and_voids_the_pass_in_flight() -> None:
    state = decoding(7, 8)
    row = state.begin_pass(64, 64)
    state.rebind(opening(term=2, committed=(7, 9, 4)), now=5.0)
    assert state.end_pass(row, [5], PassInfo(), now=6.0) is None
    assert state.tokens == [*PROMPT, 7, 9, 4]
    assert state.computed == 4


def test_a_rebinding_keeps_no_cache_behind_the_first_difference() -> None:
    state = decoding(7, 8, 9)
    state.rebind(opening(term=2, committed=(7, 5, 9)), now=5.0)
    assert state.begin_pass(64, 64).fed_ids == (5, 9)


def test_a_pass_in_flight_commits_nothing_behind_a_limit_that_a_rebinding_has_lowered() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9), now=1.0)
    row = state.begin_pass(64, 64)
    state.rebind(opening(term=2, committed=(7,), max_tokens=2), now=2.0)
    verdict = state.end_pass(row, [8, 9, 6], PassInfo(), now=3.0)
    assert (verdict.token_ids, verdict.finish) == ((8,), "length")


def test_a_rebinding_tells_whether_its_context_still_fits() -> None:
    assert decoding(7, 8).rebind(opening(term=2, committed=(7,), max_tokens=9, free_run=False), now=1.0)
    assert not decoding(7, 8).rebind(opening(term=2, committed=(9,)), now=1.0)
    for change in ({"sampling": Sampling(1.0)}, {"min_tokens": 3}, {"logprobs": 2}, {"cache_scope": "a"}):
        assert not decoding(7, 8).rebind(structs.replace(opening(term=2, committed=(7,)), **change), now=1.0), change


def test_resuming_behind_a_stop_id_is_finished_at_once() -> None:
    assert session(committed=(7, STOP)).finish == "stop"
    assert session(committed=(7, 7), max_tokens=2).finish == "length"


def test_an_open_that_is_not_newer_can_not_rebind() -> None:
    with pytest.raises(ValueError, match="term 1 does not follow 1"):
        session().rebind(opening(term=1), now=1.0)


def test_a_poll_is_answered_even_when_there_is_nothing_new() -> None:
    state = decoding(7)
    assert state.on_poll(Poll(SESSION, 1, 4), now=1.0).token_ids == ()
    assert state.on_poll(Poll(SESSION, 1, 0), now=1.0).base == 3
    assert state.on_poll(Poll(SESSION, 2, 4), now=1.0) is None


def test_a_verdict_echoes_the_newest_drafts_time_and_how_long_it_was_held() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, sent_ms=123.0), now=30.0)
    echo = run_pass(state, [8, 9]).echo
    assert (echo.sent_ms, echo.hold_ms) == (123.0, 20.0)


def test_a_hostile_drafter_can_neither_grow_the_pending_guesses_nor_break_the_epoch() -> None:
    state = decoding(7, max_tokens=200)
    for base in range(4, 200):
        state.on_draft(draft(base, 5), now=1.0)
    assert len(state.guesses.pending) <= MAX_WINDOW
    state.on_draft(draft(300, 5, epoch=1 << 48), now=1.0)
    assert state.guesses.epoch == 1 << 48


def test_an_abandoned_pass_commits_nothing_and_the_session_can_go_on() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8), now=1.0)
    row = state.begin_pass(64, 64)
    state.abandon_pass(row)
    assert state.end_pass(row, [8, 9], PassInfo(), now=2.0) is None
    assert run_pass(state, [8]).token_ids == (8,)


def test_a_dropped_cache_is_computed_again_from_the_first_token() -> None:
    state = decoding(7, 8)
    row = state.begin_pass(64, 64)
    state.drop_cache()
    assert state.end_pass(row, [9], PassInfo(), now=2.0) is None
    assert state.begin_pass(64, 64).fed_ids == (*PROMPT, 7, 8)


def test_received_guesses_are_counted_once_each() -> None:
    state = decoding(7)
    for _ in range(3):
        state.on_draft(draft(4, 8, 9), now=1.0)
    run_pass(state, [8, 9, 5])
    assert state.guesses.fates.total == 2


def test_a_session_that_is_not_ready_can_not_join_a_pass() -> None:
    state = decoding(7, STOP)
    with pytest.raises(RuntimeError, match="can't join"):
        state.begin_pass(64, 64)
    assert state.verdict_from(5, now=0.0).token_ids == NO_TOKENS


def logprobs_of(*values: float) -> list[TokenLogprobs]:
    return [TokenLogprobs(value, TokenIds(), []) for value in values]


def asking_for_logprobs(**options) -> VerifierSession:
    return VerifierSession.opened(structs.replace(opening(**options), logprobs=0), "gw.0123456789ab", now=0.0)


def test_a_verdict_carries_the_logprobs_of_its_tokens_and_a_poll_gets_them_again() -> None:
    state = asking_for_logprobs()
    state.on_draft(draft(3, 7, 8, 9), 1.0)
    row = state.begin_pass(64, 64)
    verdict = state.end_pass(row, [7, 8, 5], PassInfo(), 2.0, logprobs_of(-1, -2, -3))
    assert verdict.token_ids == (7, 8, 5)
    assert verdict.logprobs == logprobs_of(-1, -2, -3)
    row = state.begin_pass(64, 64)
    state.end_pass(row, [4], PassInfo(), 3.0, logprobs_of(-4))
    assert state.on_poll(Poll(SESSION, 1, 4), 4.0).logprobs == logprobs_of(-2, -3, -4)


def test_logprobs_behind_a_stop_id_are_not_told() -> None:
    state = asking_for_logprobs()
    state.on_draft(draft(3, 7, STOP, 9), 1.0)
    row = state.begin_pass(64, 64)
    verdict = state.end_pass(row, [7, STOP, 9], PassInfo(), 2.0, logprobs_of(-1, -2, -3))
    assert (verdict.token_ids, verdict.logprobs) == ((7, STOP), logprobs_of(-1, -2))


def test_a_resumed_session_tells_logprobs_of_its_own_draws_alone() -> None:
    state = asking_for_logprobs(committed=(7, 8))
    row = state.begin_pass(64, 64)
    state.end_pass(row, [9], PassInfo(), 2.0, logprobs_of(-3))
    told = state.on_poll(Poll(SESSION, 1, 3), 3.0)
    assert (told.token_ids, told.logprobs) == ((7, 8, 9), logprobs_of(-3))


def test_a_rebinding_with_another_text_forgets_the_logprobs_of_the_old_one() -> None:
    state = asking_for_logprobs()
    row = state.begin_pass(64, 0)
    state.end_pass(row, [7], PassInfo(), 1.0, logprobs_of(-1))
    state.rebind(structs.replace(opening(term=2, committed=(5,)), logprobs=0), 2.0)
    row = state.begin_pass(64, 0)
    state.end_pass(row, [9], PassInfo(), 3.0, logprobs_of(-2))
    assert state.on_poll(Poll(SESSION, 2, 3), 4.0).logprobs == logprobs_of(-2)


def test_a_long_answer_with_logprobs_is_told_in_pieces_that_stay_messages() -> None:
    num = 3 * MAX_TOLD_WITH_LOGPROBS // 2
    state = asking_for_logprobs(max_tokens=num)
    widest = TokenLogprobs(-1.0, TokenIds(range(20)), [-1.0] * 20)
    for _ in range(num):
        row = state.begin_pass(64, 0)
        state.end_pass(row, [7], PassInfo(), 1.0, [widest])
    first = state.on_poll(Poll(SESSION, 1, 3), 2.0)
    assert (len(first.token_ids), len(first.logprobs), first.finish) == (MAX_TOLD_WITH_LOGPROBS,) * 2 + (None,)
    assert decode(encode(first)) == first
    rest = state.on_poll(Poll(SESSION, 1, 3 + MAX_TOLD_WITH_LOGPROBS), 3.0)
    assert (len(rest.token_ids), len(rest.logprobs), rest.finish) == (num - MAX_TOLD_WITH_LOGPROBS,) * 2 + ("length",)


def test_without_asking_nobody_is_told_logprobs() -> None:
    assert run_pass(session(), [7]).logprobs is None


LONG = tuple(range(1, 12))


def scoring(committed: tuple[int, ...] = (), term: int = 1) -> VerifierSession:
    asked = structs.replace(
        opening(term, committed), prompt_ids=TokenIds(LONG), logprobs=0, prompt_logprobs=True, drafter_id=None
    )
    return VerifierSession.opened(asked, "gw.0123456789ab", now=0.0)


def score_pass(state: VerifierSession, chunk: int, draw: int = 50) -> Verdict | None:
    """A pass whose logprobs are the negative token ids."""
    row = state.begin_pass(chunk, 0)
    scored = logprobs_of(*(-float(token_id) for token_id in row.scored_ids))
    draws = [draw] * row.num_draws
    return state.end_pass(row, draws, PassInfo(), 1.0, logprobs_of(*(-draw for draw in draws)), scored=scored)


def told_from(state: VerifierSession, base: int) -> Verdict:
    told = state.on_poll(Poll(SESSION, 1, base), 2.0)
    assert told is not None
    assert [each.logprob for each in told.logprobs or ()] == [-float(token_id) for token_id in told.token_ids]
    return told


def test_a_prompt_s_tokens_are_told_as_far_as_they_have_logprobs() -> None:
    state = scoring()
    assert told_from(state, 1).token_ids == NO_TOKENS
    assert score_pass(state, 4) is None
    assert told_from(state, 1).token_ids == LONG[1:5]
    assert told_from(state, 3).token_ids == LONG[3:5]
    assert (told_from(state, 9).base, told_from(state, 9).token_ids) == (5, NO_TOKENS)
    assert score_pass(state, 4) is None
    verdict = score_pass(state, 4)
    assert (verdict.base, verdict.token_ids, verdict.logprobs) == (len(LONG), (50,), logprobs_of(-50))
    assert told_from(state, 1).token_ids == (*LONG[1:], 50)
    assert told_from(state, 0).base == 1, "nothing comes before the first token"


def test_a_text_that_is_computed_again_is_scored_once() -> None:
    state = scoring()
    score_pass(state, 6)
    state.drop_cache()
    assert state.begin_pass(4, 0).scored_ids == NO_TOKENS, "these logprobs are there"
    state.drop_cache()
    for chunk in (4, 4, 64, 64):
        score_pass(state, chunk)
    assert told_from(state, 1).token_ids == (*LONG[1:], 50, 50)


def test_a_resumed_session_scores_the_committed_answer_too() -> None:
    state = scoring(committed=(7, 8))
    score_pass(state, 64)
    assert told_from(state, 1).token_ids == (*LONG[1:], 7, 8, 50)


def test_a_resumed_session_that_is_finished_says_so_though_it_scores_nothing() -> None:
    state = scoring(committed=(7, STOP))
    told = told_from(state, len(LONG) + 2)
    assert (told.base, told.token_ids, told.finish) == (len(LONG) + 2, NO_TOKENS, "stop")


def test_a_drafter_is_told_nothing_of_a_prompt() -> None:
    state = scoring()
    score_pass(state, 4)
    told = state.on_draft(draft(len(LONG)), 1.0)
    assert (told.base, told.token_ids) == (len(LONG), NO_TOKENS)
    assert state.on_draft(draft(0), 1.0).base == len(LONG)


def test_without_asking_no_pass_scores_text() -> None:
    state = asking_for_logprobs()
    assert state.begin_pass(2, 0).scored_ids == NO_TOKENS
    assert state.verdict_from(1, 0.0).base == len(PROMPT)
