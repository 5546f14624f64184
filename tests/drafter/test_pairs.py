"""What a drafter reports of its verifiers: every count once."""

from __future__ import annotations

import pytest
from msgspec import structs

from awc.policy import WindowChoice
from services.edge_drafter import pairs as module
from services.edge_drafter.pairs import PairTable, moving
from services.edge_drafter.sessions import DraftSessions, SessionSlot
from shared.protocol.messages import NO_TOKENS, PairReport, Sampling, Speculate, Speculation, Tally, TokenIds, Verdict
from tests.fakes import FakeDraft

VERIFIER, OTHER_VERIFIER = "cloud.0123456789ab", "cloud.ba9876543210"
GATEWAY = "gateway.0123456789ab"
PROMPT = (5, 6, 7)


class Pairs:
    """A pair table and the sessions that feed it."""

    def __init__(self) -> None:
        self.table = DraftSessions(FakeDraft(), 1000)
        self.pairs = PairTable()
        self.num_started = 0

    def start(self, verifier_id: str = VERIFIER) -> SessionSlot:
        self.num_started += 1
        return self.speculate(f"{self.num_started:032x}", 1, verifier_id)

    def rebind(self, slot: SessionSlot, verifier_id: str) -> None:
        """Under a higher term, counted at once, as the service does."""
        self.speculate(slot.state.session_id, slot.state.term + 1, verifier_id)
        self.pairs.absorb(slot)

    def speculate(self, session_id: str, term: int, verifier_id: str) -> SessionSlot:
        request = Speculate(
            session_id, term, verifier_id, TokenIds(PROMPT), NO_TOKENS, Sampling(), NO_TOKENS, 100, Speculation()
        )
        return self.table.speculate(request, GATEWAY, WindowChoice(8, 2, True), 0.0)

    def report(self, draft_ms: float = 5.0) -> dict[str, PairReport]:
        windows = dict.fromkeys(self.pairs.verifier_ids(), 8)
        reports = self.pairs.take_reports(list(self.table), windows, lambda num_sessions: num_sessions * draft_ms)
        return {report.verifier_id: report for report in reports}


@pytest.fixture
def pairs() -> Pairs:
    return Pairs()


def count(slot: SessionSlot, drafted: int = 0, **fates: int) -> None:
    """As if the session had drafted so much, and judged so much of it."""
    slot.state.drafted += drafted
    for fate, number in fates.items():
        setattr(slot.state.fates, fate, getattr(slot.state.fates, fate) + number)


def verdict(slot: SessionSlot, queue: float = 0.0) -> Verdict:
    return Verdict(slot.state.session_id, 1, 0, 3, TokenIds((1,)), 0, None, None, 1.0, 1, queue, Tally())


def test_a_report_has_the_counts_since_the_last_one(pairs: Pairs) -> None:
    slot = pairs.start()
    count(slot, 10, accepted=4, rejected=1, late=2, discarded=3)
    pairs.pairs.absorb(slot)
    report = pairs.report()[VERIFIER]
    assert (report.drafted, report.matched, report.mismatched, report.late, report.discarded) == (10, 6, 1, 2, 3)
    count(slot, 5, accepted=5)
    pairs.pairs.absorb(slot)
    report = pairs.report()[VERIFIER]
    assert (report.drafted, report.matched, report.mismatched, report.late, report.discarded) == (5, 5, 0, 0, 0)


def test_absorbing_tells_what_the_metrics_have_already(pairs: Pairs) -> None:
    slot = pairs.start()
    count(slot, 3, accepted=2)
    assert pairs.pairs.absorb(slot).accepted == 0
    count(slot, accepted=1)
    before = pairs.pairs.absorb(slot)
    assert before.accepted == 2
    count(slot, accepted=7)
    assert before.accepted == 2
    assert slot.reported.fates.accepted == 3


def test_absorbing_again_without_a_change_counts_nothing(pairs: Pairs) -> None:
    slot = pairs.start()
    count(slot, 3, accepted=2)
    for _ in range(3):
        pairs.pairs.absorb(slot)
    assert pairs.report()[VERIFIER].drafted == 3
    assert pairs.report()[VERIFIER].drafted == 0


def test_sessions_of_one_verifier_are_added_up_and_those_of_another_are_not(pairs: Pairs) -> None:
    for verifier_id, drafted in ((VERIFIER, 3), (VERIFIER, 4), (OTHER_VERIFIER, 5)):
        slot = pairs.start(verifier_id)
        count(slot, drafted)
        pairs.pairs.absorb(slot)
    reports = pairs.report(draft_ms=7.0)
    assert {key: (report.drafted, report.num_sessions) for key, report in reports.items()} == {
        VERIFIER: (7, 2), OTHER_VERIFIER: (5, 1),
    }  # fmt: skip
    assert all((report.draft_ms, report.window, report.context) == (21.0, 8, 3) for report in reports.values())


def test_the_counts_of_a_session_that_is_over_are_still_reported_and_then_its_pair_is_forgotten(pairs: Pairs) -> None:
    slot = pairs.start()
    count(slot, 3)
    pairs.table.drop(slot.state.session_id)
    pairs.pairs.absorb(slot)
    pairs.pairs.forget(slot)
    report = pairs.report()[VERIFIER]
    assert (report.drafted, report.num_sessions, report.context) == (3, 0, 0)
    assert pairs.pairs.verifier_ids() == []


def test_a_pair_with_sessions_is_reported_though_nothing_was_drafted(pairs: Pairs) -> None:
    slot = pairs.start()
    pairs.pairs.observe(slot, verdict(slot, queue=0.5), 1, now=0.0)
    for _ in range(2):
        report = pairs.report()[VERIFIER]
        assert (report.num_sessions, report.drafted, report.queue) == (1, 0, 0.5)


def test_times_of_a_pass_come_once_from_the_verdict_of_its_tokens(pairs: Pairs) -> None:
    slot = pairs.start()
    first = verdict(slot, queue=0.5)
    before_any_pass = structs.replace(first, compute_ms=0.0, batch=0, queue=0.0)
    again = structs.replace(first, compute_ms=9.0, batch=3)
    for each, num_new in ((before_any_pass, 0), (before_any_pass, 2), (first, 1), (again, 0)):
        pairs.pairs.observe(slot, each, num_new, now=0.0)
    report = pairs.report()[VERIFIER]
    assert (report.pass_ms, report.batch, report.queue) == (1.0, 1.0, 0.5)


def test_time_per_token_is_the_time_since_the_sessions_last_tokens_shared_by_the_new_ones(pairs: Pairs) -> None:
    slot, other = pairs.start(), pairs.start()
    for who, num_new, now in ((slot, 2, 100.0), (other, 1, 120.0), (slot, 4, 180.0), (slot, 0, 500.0)):
        pairs.pairs.observe(who, verdict(who), num_new, now)
    count(slot, 1)
    pairs.pairs.absorb(slot)
    assert pairs.report()[VERIFIER].tpot_ms == 20.0
    pairs.pairs.observe(slot, verdict(slot), 1, 220.0)
    count(slot, 1)
    pairs.pairs.absorb(slot)
    assert pairs.report()[VERIFIER].tpot_ms == pytest.approx((0.8 * 80 + 0.2 * 40) / (0.8 * 4 + 0.2 * 1))


def test_the_pause_between_two_lives_of_a_session_is_no_time_per_token(pairs: Pairs) -> None:
    slot = pairs.start()
    pairs.pairs.observe(slot, verdict(slot), 1, now=0.0)
    pairs.pairs.forget(slot)
    pairs.pairs.observe(slot, verdict(slot), 1, now=9000.0)
    count(slot, 1)
    pairs.pairs.absorb(slot)
    assert pairs.report()[VERIFIER].tpot_ms == 0


def guessed(pairs: Pairs, num: int) -> SessionSlot:
    """A session with so many open guesses, and a verdict behind it."""
    slot = pairs.start()
    pairs.pairs.observe(slot, verdict(slot), 1, now=0.0)
    for _ in range(num):
        slot.state.end_step(slot.state.begin_step(64), 1)
    pairs.pairs.absorb(slot)
    return slot


def test_a_session_that_moves_leaves_the_fate_of_its_guesses_to_the_verifier_that_they_were_made_for(
    pairs: Pairs,
) -> None:
    slot = guessed(pairs, 8)
    pairs.report()
    pairs.rebind(slot, OTHER_VERIFIER)
    assert {key: (report.drafted, report.discarded, report.num_sessions) for key, report in pairs.report().items()} == {
        VERIFIER: (0, 8, 0), OTHER_VERIFIER: (0, 0, 1),
    }  # fmt: skip
    count(slot, 3, accepted=2)
    pairs.pairs.absorb(slot)
    assert {key: (report.drafted, report.matched) for key, report in pairs.report().items()} == {OTHER_VERIFIER: (3, 2)}


def test_a_session_that_moves_and_returns_has_no_time_per_token_and_no_round_trip_of_the_other_link(
    pairs: Pairs,
) -> None:
    pairs.start()  # so that the pair is not forgotten as a whole
    slot = guessed(pairs, 1)
    slot.state.round_trip.observe(30.0)
    pairs.rebind(slot, OTHER_VERIFIER)
    pairs.pairs.observe(slot, verdict(slot), 1, now=5000.0)
    assert pairs.report()[OTHER_VERIFIER].rtt_ms == 0
    pairs.rebind(slot, VERIFIER)
    pairs.pairs.observe(slot, verdict(slot), 1, now=9000.0)
    assert pairs.report()[VERIFIER].tpot_ms == 0


def test_a_session_that_stays_with_its_verifier_under_another_term_keeps_its_figures(pairs: Pairs) -> None:
    slot = guessed(pairs, 8)
    slot.state.round_trip.observe(30.0)
    pairs.rebind(slot, VERIFIER)
    pairs.pairs.observe(slot, verdict(slot), 2, now=100.0)
    report = pairs.report()[VERIFIER]
    assert (report.drafted, report.discarded, report.num_sessions) == (8, 8, 1)
    assert (report.rtt_ms, report.tpot_ms) == (30.0, 50.0)


def test_the_round_trip_is_the_sessions_smoothed_one(pairs: Pairs) -> None:
    slot = pairs.start()
    pairs.pairs.observe(slot, verdict(slot), 1, now=0.0)
    slot.state.round_trip.observe(30.0)
    pairs.pairs.observe(slot, verdict(slot), 1, now=0.0)
    count(slot, 1)
    pairs.pairs.absorb(slot)
    assert pairs.report()[VERIFIER].rtt_ms == 30.0


def test_more_pairs_than_a_report_may_carry_are_reported_in_turn(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPORTED_PAIRS", 2)
    for number in range(5):
        slot = pairs.start(f"cloud.{number:012x}")
        count(slot, 1)
        pairs.pairs.absorb(slot)
        pairs.table.drop(slot.state.session_id)
    sizes = [len(pairs.report()) for _ in range(4)]
    assert sizes == [2, 2, 1, 0]
    assert pairs.pairs.verifier_ids() == []


def test_a_moving_average_starts_with_its_first_sample() -> None:
    assert moving(0.0, 10.0) == 10.0
    assert moving(10.0, 20.0) == pytest.approx(12.0)


def test_a_pair_is_told_the_time_between_guesses_of_its_sessions_and_of_others_that_draft(pairs: Pairs) -> None:
    mine = pairs.start()
    others = [pairs.start(OTHER_VERIFIER) for _ in range(3)]
    for slot in (mine, *others):
        pairs.pairs.absorb(slot)
    for slot in (mine, *others[1:]):
        slot.state.steer(0, 1, free_run=True)
    reports = pairs.report(draft_ms=5.0)
    assert (reports[VERIFIER].draft_ms, reports[OTHER_VERIFIER].draft_ms) == (10.0, 15.0)
