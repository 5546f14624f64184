"""The verifier's own guesses in a session: behind the drafter's, compared like them, and never the drafter's fault."""

from __future__ import annotations

import pytest

from shared.protocol.lookup import NOTHING, LookupChances
from shared.protocol.messages import Draft, Open, Sampling, TokenIds, Verdict
from shared.protocol.pass_row import PassInfo, PassRow
from shared.protocol.verifier_session import VerifierSession

SESSION, DRAFTER = "ab" * 16, "edge.0123456789ab"
PROMPT = (7, 8, 9, 4, 5, 6, 7, 8)  # (9, 4, 5, 6, 7, 8, 9, ...) followed the last two tokens before


def opening(lookup: bool = True, term: int = 1, max_tokens: int = 20, **fields) -> Open:
    given = {"prompt_ids": TokenIds(PROMPT), "committed_ids": TokenIds(), "stop_ids": TokenIds((0,))} | fields
    return Open(SESSION, term, DRAFTER, sampling=Sampling(), max_tokens=max_tokens, lookup=lookup, **given)


def session(**fields) -> VerifierSession:
    return VerifierSession.opened(opening(**fields), "gw.0123456789ab", now=0.0)


def draft(base: int, *ids: int) -> Draft:
    return Draft(SESSION, 1, 0, base, TokenIds(ids), True, 1.0)


def begin(state: VerifierSession, most: int = 4, max_guesses: int = 64) -> PassRow:
    state.look_up(most)
    return state.begin_pass(64, max_guesses)


def end(state: VerifierSession, row: PassRow, *draws: int) -> Verdict:
    verdict = state.end_pass(row, draws, PassInfo(), 1.0)
    assert verdict is not None
    return verdict


def fates(state: VerifierSession) -> tuple[int, int, int]:
    own = state.own_guesses.fates
    return own.accepted, own.rejected, own.discarded


def test_right_guesses_of_its_own_are_committed_and_told_apart_from_the_drafters() -> None:
    state = session()
    row = begin(state)
    assert (row.guesses, row.looked_up.token_ids) == ((), (9, 4, 5, 6))
    assert row.fed_ids == (*PROMPT, 9, 4, 5, 6)
    verdict = end(state, row, 9, 4, 5, 6, 1)
    assert verdict.token_ids == (9, 4, 5, 6, 1)
    assert (verdict.accepted, verdict.looked_up, verdict.tally.looked_up) == (0, 4, 4)
    assert verdict.tally.accepted == verdict.tally.rejected == 0
    assert (state.computed, state.num_todo) == (len(PROMPT) + 4, 1)


def test_a_wrong_guess_of_its_own_ends_the_run_and_raises_no_epoch() -> None:
    state = session()
    verdict = end(state, begin(state), 9, 4, 1, 6, 7)
    assert verdict.token_ids == (9, 4, 1)
    assert (verdict.looked_up, verdict.epoch) == (2, 0)
    assert fates(state) == (2, 1, 1)
    assert state.computed == len(PROMPT) + 2


def test_they_stand_behind_the_drafters_guesses_and_continue_them() -> None:
    state = session()
    state.on_draft(draft(8, 9, 4), 0.0)
    row = begin(state)
    assert (row.guesses, row.looked_up.token_ids) == ((9, 4), (5, 6))
    verdict = end(state, row, 9, 4, 5, 6, 1)
    assert (verdict.accepted, verdict.looked_up) == (2, 2)
    assert verdict.tally.accepted == 2


def test_behind_a_wrong_guess_of_the_drafter_they_are_discarded() -> None:
    state = session()
    state.on_draft(draft(8, 9, 4), 0.0)
    verdict = end(state, begin(state), 9, 1, 5, 6, 7)
    assert (verdict.token_ids, verdict.accepted, verdict.looked_up) == ((9, 1), 1, 0)
    assert verdict.tally.rejected == 1
    assert verdict.epoch == 1
    assert fates(state) == (0, 0, 2)


def test_a_pass_that_buys_only_some_of_the_drafters_guesses_has_none_of_its_own() -> None:
    state = session()
    state.on_draft(draft(8, 9, 4, 5), 0.0)
    row = begin(state, most=8, max_guesses=1)
    assert (row.guesses, row.looked_up) == ((9, 4), NOTHING)
    assert state.guesses.pending == [5]


def test_the_last_guess_of_its_own_need_not_be_fed() -> None:
    row = begin(session(), max_guesses=2)
    assert (row.looked_up.token_ids, row.fed_ids, row.num_draws) == ((9, 4, 5), (*PROMPT, 9, 4), 3)


def test_guesses_that_come_during_the_pass_are_late_if_it_had_guessed_the_same_and_rejected_if_not() -> None:
    state = session()
    row = begin(state)
    state.on_draft(draft(8, 9, 4), 0.5)
    verdict = end(state, row, 9, 4, 5, 6, 1)
    assert (verdict.tally.late, verdict.tally.rejected, verdict.epoch) == (2, 0, 0)
    other = session()
    row = begin(other)
    other.on_draft(draft(8, 9, 3), 0.5)
    verdict = end(other, row, 9, 4, 5, 6, 1)
    assert (verdict.tally.late, verdict.tally.rejected, verdict.epoch) == (1, 1, 1)


def test_without_leave_of_the_gateway_or_room_there_are_none() -> None:
    assert begin(session(lookup=False)).looked_up == NOTHING
    assert begin(session(), most=0).looked_up == NOTHING
    full = session()
    full.on_draft(draft(8, 9, 4), 0.0)
    assert begin(full, most=2).looked_up == NOTHING


def test_the_answer_ends_at_its_limit_and_at_a_stop_token() -> None:
    state = session(max_tokens=3)
    row = begin(state)
    assert row.fed_ids == (*PROMPT, 9, 4)
    verdict = end(state, row, 9, 4, 5)
    assert (verdict.token_ids, verdict.finish, verdict.looked_up) == ((9, 4, 5), "length", 3)
    stopped = session(prompt_ids=TokenIds((7, 8, 0, 4, 7, 8)))
    row = begin(stopped)
    assert row.looked_up.token_ids == (0,)
    verdict = end(stopped, row, 0, 4)
    assert (verdict.token_ids, verdict.finish) == ((0,), "stop")


def test_the_context_has_room_for_them() -> None:
    state = session()
    assert state.reach == len(PROMPT) + 1
    state.look_up(4)
    assert state.reach == len(PROMPT) + 5


def test_a_pass_over_a_part_of_the_prompt_has_none_and_forgets_them() -> None:
    state = session()
    state.look_up(4)
    row = state.begin_pass(3, 64)
    assert (row.fed_ids, row.num_draws, row.looked_up) == (PROMPT[:3], 0, NOTHING)
    assert state.reach == len(PROMPT) + 1


def test_another_text_is_looked_up_anew() -> None:
    state = session()
    state.look_up(4)
    state.rebind(opening(term=2, prompt_ids=TokenIds((1, 2, 3, 7, 8))), 1.0)
    assert begin(state).looked_up == NOTHING


def test_a_new_term_has_none_of_the_old_one() -> None:
    state = session()
    state.look_up(4)
    state.rebind(opening(lookup=False, term=2), 1.0)
    assert begin(state).looked_up == NOTHING


def test_guesses_behind_a_failed_pass_count_as_discarded() -> None:
    state = session()
    row = begin(state)
    state.abandon_pass(row)
    assert fates(state) == (0, 0, 4)


def test_guesses_of_a_pass_that_drew_nothing_count_as_discarded() -> None:
    state = session()
    assert state.end_pass(begin(state), [], PassInfo(), 1.0, computed=2) is None
    assert fates(state) == (0, 0, 4)


def test_their_chances_stand_behind_those_of_the_drafters_guesses() -> None:
    state = session()
    state.look_up(2)
    (first, second) = state.chances
    assert 1 > first > second > 0
    state.on_draft(draft(8, 9), 0.0)
    state.look_up(3)
    assert state.chances[0] == pytest.approx(0.7)  # of a session's first guess
    own = LookupChances().survival(state.own_guesses.ready, 1.0)
    assert state.chances[1:] == pytest.approx([0.7 * each for each in own])


def test_a_wrong_guess_lowers_the_chances_of_its_match_in_this_session_alone() -> None:
    state = session()
    state.look_up(1)
    before = state.chances
    end(state, state.begin_pass(64, 64), 7, 8)
    end(state, state.begin_pass(64, 64), 8)  # the text ends with the same pair again
    state.look_up(1)
    assert state.own_guesses.ready.match == 2
    assert state.chances[0] < before[0]
    other = session()
    other.look_up(1)
    assert other.chances == before
