"""Tokens that a grammar forces, at the verifier (docs/protocol.md, rule 10)."""

from __future__ import annotations

from shared.protocol.messages import Verdict
from shared.protocol.pass_row import PassInfo
from shared.protocol.verifier_session import VerifierSession
from tests.shared.protocol.test_verifier_session import COMMITTED_AT, STOP, decoding, draft


def forced_pass(state: VerifierSession, draws: list[int], forced: list[int]) -> Verdict | None:
    row = state.begin_pass(64, 64)
    return state.end_pass(row, draws[: row.num_draws], PassInfo(20.0, 1, 0.1), COMMITTED_AT, forced=forced)


def test_forced_tokens_are_committed_with_the_draws_and_computed_in_the_next_pass() -> None:
    state = decoding(7)
    verdict = forced_pass(state, [8], [9, 5])
    assert (verdict.base, verdict.token_ids, verdict.accepted) == (4, (8, 9, 5), 0)
    row = state.begin_pass(64, 64)
    assert (row.start, row.fed_ids, row.num_draws, row.base) == (4, (8, 9, 5), 1, 7)


def test_forced_tokens_judge_no_guess_of_the_pass_and_overtake_those_behind_it() -> None:
    state = decoding(7)
    state.on_draft(draft(4, 8, 9, 6), now=1.0)
    verdict = forced_pass(state, [8, 4, 1, 1], [9, 6])
    assert (verdict.token_ids, verdict.accepted, verdict.epoch) == ((8, 4, 9, 6), 1, 1)
    fates = state.guesses.fates
    assert (fates.accepted, fates.rejected, fates.discarded) == (1, 1, 1)


def test_guesses_that_came_during_a_pass_are_compared_with_its_forced_tokens() -> None:
    state = decoding(7)
    row = state.begin_pass(64, 64)
    state.on_draft(draft(4, 8, 9, 5, 6), now=1.0)
    state.end_pass(row, [8], PassInfo(20.0, 1, 0.1), COMMITTED_AT, forced=[9, 5])
    assert state.guesses.pending == [6]
    assert state.guesses.fates.late == 3


def test_nothing_is_forced_behind_a_stop_id_or_max_tokens() -> None:
    assert forced_pass(decoding(7), [STOP], [9]).token_ids == (STOP,)
    verdict = forced_pass(decoding(7, max_tokens=3), [8], [9, 5])
    assert (verdict.token_ids, verdict.finish) == ((8, 9), "length")
