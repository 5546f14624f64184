"""When a session waits for guesses, and for how long in all (docs/protocol.md, rule 13)."""

from __future__ import annotations

import pytest

from shared.protocol.messages import Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.verifier_session import EARNED_MS, OVERTAKING_MS, VerifierSession
from tests.shared.protocol.test_verifier_session import (
    COMMITTED_AT,
    DRAFTER,
    SESSION,
    STOP,
    decoding,
    draft,
    opening,
    run_pass,
    session,
)


def test_without_free_run_the_verifier_waits_for_guesses_behind_its_first_token() -> None:
    state = session(free_run=False)
    assert run_pass(state, [7]).token_ids == (7,)
    assert not state.ready
    state.on_draft(draft(4, 8, free_run=False), now=2.0)
    assert run_pass(state, [8, 9]).token_ids == (8, 9)


def test_without_free_run_a_prompt_of_one_token_yields_the_first_token_too() -> None:
    request = Open(SESSION, 1, DRAFTER, TokenIds((5,)), TokenIds(()), Sampling(), TokenIds((STOP,)), 20, False)
    state = VerifierSession.opened(request, "gw.0123456789ab", now=0.0)
    assert run_pass(state, [7]).token_ids == (7,)
    assert not state.ready


def test_without_free_run_a_text_computed_again_yields_a_token_too() -> None:
    state = decoding(7, 8, free_run=True)
    state.on_draft(draft(5, free_run=False), now=1.0)
    assert not state.ready
    state.drop_cache()
    row = state.begin_pass(64, 64)
    assert (row.fed_ids, row.num_draws) == ((1, 2, 3, 7, 8), 1)


def test_the_newest_draft_says_whether_the_verifier_may_run_free() -> None:
    state = decoding(7)
    state.on_draft(draft(4, free_run=False, sent_ms=5.0), now=1.0)
    assert not state.draws
    state.on_draft(draft(4, free_run=True, sent_ms=4.0), now=2.0)  # older, overtaken
    assert not state.draws


def test_a_send_time_makes_a_draft_the_newest_for_a_second_at_most() -> None:
    state = decoding(7)
    state.on_draft(draft(4, free_run=False, sent_ms=1e15), now=100.0)
    state.on_draft(draft(4, free_run=True, sent_ms=2.0), now=100.0 + OVERTAKING_MS - 1)
    assert not state.draws
    state.on_draft(draft(4, free_run=True, sent_ms=3.0), now=100.0 + OVERTAKING_MS)
    assert state.draws
    assert state.verdict_from(4, now=1200.0).echo.sent_ms == 3.0


def test_a_drafter_silent_for_its_lease_lets_the_verifier_run_free() -> None:
    state = decoding(7, free_run=False)
    assert not state.expire_drafter(now=COMMITTED_AT + 999.0, lease_ms=1000.0)
    assert not state.draws
    assert state.expire_drafter(now=COMMITTED_AT + 1000.0, lease_ms=1000.0)
    assert state.draws


@pytest.mark.parametrize("sent_ms", [0.0, 1e15])
def test_no_draft_renews_the_drafters_lease(sent_ms: float) -> None:
    state = decoding(7, free_run=False)
    for epoch in range(100):
        now = COMMITTED_AT + 10.0 * epoch
        for guesses in ((), (9, 9), ()):  # the last one takes the guesses back
            said = draft(4, *guesses, epoch=epoch + (not guesses), free_run=False, sent_ms=sent_ms)
            state.on_draft(said, now)
    assert state.expire_drafter(now=COMMITTED_AT + 1000.0, lease_ms=1000.0)
    state.on_draft(draft(4, epoch=100, free_run=False, sent_ms=sent_ms), now=COMMITTED_AT + 1000.0)
    assert run_pass(state, [8]).token_ids == (8,)
    assert state.draws


def test_after_its_lease_a_drafter_is_waited_for_as_long_as_its_accepted_guesses_make_up_for() -> None:
    state = decoding(7, free_run=False)
    assert state.expire_drafter(now=COMMITTED_AT + 1000.0, lease_ms=1000.0)
    state.on_draft(draft(4, 5, free_run=False), now=2000.0)
    run_pass(state, [8], now=2000.0)
    assert state.draws, "that guess was wrong"
    state.on_draft(draft(5, 9, 6, epoch=1, free_run=False), now=2000.0)
    run_pass(state, [9, 6, 5], now=2000.0)
    assert not state.draws
    assert not state.expire_drafter(now=1999.0 + 2 * EARNED_MS, lease_ms=1000.0)
    assert state.expire_drafter(now=2000.0 + 2 * EARNED_MS, lease_ms=1000.0)


def test_a_wait_that_was_noticed_late_is_taken_off_the_next_one() -> None:
    state = decoding(7, free_run=False)
    assert state.expire_drafter(now=COMMITTED_AT + 1100.0, lease_ms=1000.0)
    state.on_draft(draft(4, 8, free_run=False), now=2000.0)
    run_pass(state, [8, 9], now=2000.0)
    assert not state.draws
    assert state.expire_drafter(now=2000.0 + EARNED_MS - 100.0, lease_ms=1000.0)


def test_a_commit_without_an_accepted_guess_renews_no_lease() -> None:
    state = decoding(7, free_run=False)
    for round_ in range(4):
        now = COMMITTED_AT + 250.0 * (round_ + 1)
        assert not state.expire_drafter(now=now - 1.0, lease_ms=1000.0)
        state.on_draft(draft(4 + round_, 1, epoch=round_, free_run=False), now=now)
        run_pass(state, [9], now=now)
    assert state.expire_drafter(now=COMMITTED_AT + 1000.0, lease_ms=1000.0) or state.draws


def test_a_new_term_renews_no_lease() -> None:
    state = decoding(7, free_run=False)
    assert state.expire_drafter(now=5000.0, lease_ms=1000.0)
    state.rebind(opening(term=2, committed=(7,), free_run=False), now=5000.0)
    assert state.draws


def test_a_pass_may_take_longer_than_the_drafters_lease() -> None:
    state = decoding(7, free_run=False)
    state.on_draft(draft(4, 8, free_run=False), now=COMMITTED_AT)
    row = state.begin_pass(64, 64)
    assert not state.expire_drafter(now=9000.0, lease_ms=1000.0)
    state.end_pass(row, [8, 9], PassInfo(), now=9000.0)
    assert not state.draws
    assert not state.expire_drafter(now=9999.0, lease_ms=1000.0)
    assert state.expire_drafter(now=10_000.0, lease_ms=1000.0)
