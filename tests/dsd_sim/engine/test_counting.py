"""The counting form of a session against the services' state machines, compared after every event."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsd_sim.engine import draft_session, records, verify_session
from shared.protocol.drafter_session import DrafterSession, DraftStep
from shared.protocol.lookup import LEAST_MATCH, LONGEST_MATCH, NOTHING, LookedUp
from shared.protocol.messages import NO_TOKENS, Draft, Open, Sampling, Speculate, Speculation, TokenIds, Verdict
from shared.protocol.pass_row import PassInfo, PassRow
from shared.protocol.verifier_session import VerifierSession

NUM_SCENARIOS = 1000
PROMPT = 3
STOP_ID = 1
LEASE_MS = 100.0
DRAFTER_FIELDS = ("committed", "computed", "sent", "epoch", "drafted", "closed", "free_run", "window", "chunk")
VERIFIER_FIELDS = ("length", "computed")
FATES = ("accepted", "rejected", "late", "discarded")


@dataclass
class BothForms:
    """Both sides of a session and the messages in flight, each in both forms."""

    rng: random.Random
    most_looked_up: int  # guesses of the verifier's own in a pass
    now: float = 0.0
    drafts: deque[tuple[Draft, Any]] = field(default_factory=deque)
    verdicts: deque[tuple[Verdict, Any]] = field(default_factory=deque)
    step: DraftStep | None = None
    row: PassRow | None = None

    def __post_init__(self) -> None:
        rng = self.rng
        self.max_tokens = rng.randint(1, 40)
        self.stop = PROMPT + rng.randint(1, 50)
        self.truth = [2 * position + 10 for position in range(200)]
        self.truth[self.stop - 1] = STOP_ID
        quality = rng.choice([0.0, 0.5, 0.8, 0.95, 1.0])
        self.right = [rng.random() < quality for _ in range(200)]
        self.confidence = [rng.random() for _ in range(200)]
        window, chunk, free_run = rng.randint(0, 12), rng.randint(1, 12), rng.random() < 0.6
        prompt, stops = TokenIds(self.truth[:PROMPT]), TokenIds([STOP_ID])
        order = Open("s", 0, "d", prompt, NO_TOKENS, Sampling(), stops, self.max_tokens, free_run=free_run)
        ask = Speculate("s", 0, "v", prompt, NO_TOKENS, Sampling(), stops, self.max_tokens, Speculation())
        self.verifier = VerifierSession.opened(order, "g", 0.0)
        self.drafter = DrafterSession.started(ask, window, chunk, free_run, 0.0)
        self.drafter.steer(window, chunk, free_run)
        self.d = np.zeros(1, records.DRAFTER).view(np.recarray)[0]
        self.v = np.zeros(1, records.VERIFIER).view(np.recarray)[0]
        limit = PROMPT + self.max_tokens
        draft_session.start_drafter(self.d, PROMPT, self.stop, limit, window, chunk, free_run, 0.0)
        verify_session.open_verifier(self.v, PROMPT, self.stop, limit, free_run, True, 0.0)

    @property
    def is_over(self) -> bool:
        return self.verifier.finish is not None and self.drafter.closed and not self.drafts and not self.verdicts

    # --- events ----------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        if self.step is None and self.drafter.wants_step:
            most = self.rng.randint(1, 4)
            self.step = self.drafter.begin_step(most)
            assert draft_session.begin_step(self.d, most) == len(self.step.fed_ids)

    def end_step(self) -> None:
        if self.step is None:
            return
        position = self.step.start + len(self.step.fed_ids)
        is_true_so_far = self.drafter.tokens[:position] == self.truth[:position]
        guess = self.truth[position] if is_true_so_far and self.right[position] else 2 * position + 11
        taken = self.drafter.end_step(self.step, guess, self.confidence[position])
        assert draft_session.end_step(self.d, self.right[position], self.confidence[position]) == taken
        self.step = None

    def send(self) -> None:
        m = new_message()
        draft = self.drafter.take_draft(self.now)
        assert draft_session.take_draft(self.d, m, self.now) == (draft is not None)
        self.under_way(draft, m)

    def time_out(self) -> None:
        due = self.drafter.resend_at
        assert (np.inf if due is None else due) == draft_session.resend_at(self.d)
        m = new_message()
        draft = self.drafter.on_timer(self.now)
        assert draft_session.on_timer(self.d, m, self.now) == (draft is not None)
        self.under_way(draft, m)

    def under_way(self, draft: Draft | None, m: Any) -> None:
        if draft is not None:
            assert (draft.epoch, draft.base, len(draft.token_ids)) == fields_of(m, "epoch", "base", "num")
            self.drafts.append((draft, m))

    def steer(self) -> None:
        window, chunk, free_run = self.rng.randint(0, 12), self.rng.randint(1, 6), self.rng.random() < 0.7
        min_confidence = self.rng.choice([0.0, 0.3])
        self.drafter.steer(window, chunk, free_run, min_confidence)
        draft_session.steer(self.d, window, chunk, free_run, min_confidence)

    def hear_draft(self) -> None:
        if not self.drafts:
            return
        draft, m = self.take(self.drafts)
        answer = new_message()
        verdict = self.verifier.on_draft(draft, self.now)
        assert verify_session.on_draft(self.v, m, answer, self.now) == (verdict is not None)
        self.deliver(verdict, answer)

    def hear_verdict(self) -> None:
        if not self.verdicts:
            return
        verdict, m = self.take(self.verdicts)
        assert draft_session.on_verdict(self.d, m, self.now) == self.drafter.on_verdict(verdict, self.now)

    def take(self, queue: deque[Any]) -> Any:
        """The oldest message; sometimes it is repeated later, or a newer one comes first."""
        if self.rng.random() < 0.1:
            queue.rotate(1)
        message = queue.popleft()
        if self.rng.random() < 0.05:
            queue.append(message)
        return message

    def expire(self) -> None:
        is_free = self.verifier.expire_drafter(self.now, LEASE_MS)
        assert verify_session.expire_drafter(self.v, self.now, LEASE_MS) == is_free

    def begin_pass(self) -> None:
        assert verify_session.is_ready(self.v) == self.verifier.ready
        if self.verifier.ready:
            most, guesses = self.rng.randint(1, 8), self.rng.randint(0, 8)
            if self.most_looked_up:
                self.look_up()
            self.row = self.verifier.begin_pass(most, guesses)
            assert verify_session.begin_pass(self.v, most, guesses) == len(self.row.fed_ids)

    def look_up(self) -> None:
        """Guesses of the verifier's own, right up to one of them."""
        num, match = self.rng.randint(0, self.most_looked_up), self.rng.randint(LEAST_MATCH, LONGEST_MATCH)
        right = self.rng.randint(0, num)
        place = self.verifier.length + len(self.verifier.guesses.pending)
        ids = [
            *self.truth[place : place + right],
            *(2 * position + 11 for position in range(place + right, place + num)),
        ]
        self.verifier.own_guesses.ready = LookedUp(TokenIds(ids), match) if num else NOTHING
        verify_session.look_up(self.v, num, right, match)
        chances = [verify_session.survival(self.v) ** (k + 1) for k in range(self.v.pending)]
        own = np.cumprod([verify_session.own_chance(self.v, k) for k in range(num)])
        chances += [verify_session.survival(self.v) ** self.v.pending * each for each in own]
        np.testing.assert_allclose(self.verifier.chances, chances)

    def end_pass(self) -> None:
        if self.row is None:
            return
        draws = self.truth[self.row.base : self.row.base + self.row.num_draws]
        verdict = self.verifier.end_pass(self.row, draws, PassInfo(7.0, 2, 0.5, 9), self.now)
        self.row = None
        answer = new_message()
        assert verify_session.end_pass(self.v, answer, 7.0, 2, 0.5, 9, self.now) == (verdict is not None)
        self.deliver(verdict, answer)

    def deliver(self, verdict: Verdict | None, m: Any) -> None:
        if verdict is None:
            return
        assert (verdict.epoch, verdict.base, len(verdict.token_ids)) == fields_of(m, "epoch", "base", "num")
        assert (verdict.accepted, verdict.finish is not None) == fields_of(m, "accepted", "finish")
        assert (verdict.batch, verdict.pass_tokens) == fields_of(m, "batch", "pass_tokens")
        if self.rng.random() < 0.95:
            self.verdicts.append((verdict, m))

    # --- comparison ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        drafter, verifier, d, v = self.drafter, self.verifier, self.d, self.v
        assert [getattr(drafter, name) for name in DRAFTER_FIELDS] == [d[name] for name in DRAFTER_FIELDS]
        assert [getattr(verifier, name) for name in VERIFIER_FIELDS] == [v[name] for name in VERIFIER_FIELDS]
        guesses = verifier.guesses
        assert (guesses.epoch, guesses.base, len(guesses.pending)) == (v.epoch, v.pending_base, v.pending)
        assert len(drafter.tokens) == d.length
        assert (verifier.finish is not None) == v.finished
        for fates, record in ((drafter.fates, d), (guesses.fates, v)):
            assert [getattr(fates, fate) for fate in FATES] == [record[fate] for fate in FATES]
        assert abs(guesses.survival.probability - verify_session.survival(v)) < 1e-9
        assert drafter.can_draft == draft_session.can_draft(d)
        assert verifier.own_guesses.fates.accepted == v.looked_up


def fields_of(m: Any, *names: str) -> tuple[Any, ...]:
    return tuple(m[name] for name in names)


def new_message() -> Any:
    return np.zeros(1, records.MESSAGE).view(np.recarray)[0]


def play(seed: int, most_looked_up: int) -> BothForms:
    pair = BothForms(random.Random(seed), most_looked_up)
    often = [
        pair.begin_step,
        pair.end_step,
        pair.send,
        pair.hear_draft,
        pair.hear_verdict,
        pair.begin_pass,
        pair.end_pass,
    ]
    for _ in range(3000):
        pair.now += pair.rng.random() * 10
        pair.rng.choice(often if pair.rng.random() < 0.95 else [pair.steer, pair.time_out, pair.expire])()
        pair.check()
        if pair.is_over:
            break
    return pair


def test_the_counting_form_equals_the_state_machines() -> None:
    num_over = num_accepted = num_rejected = num_late = num_discarded = num_looked_up = 0
    for seed, most_looked_up in itertools.product(range(NUM_SCENARIOS), [0, 5]):
        pair = play(seed, most_looked_up)
        num_over += pair.is_over
        fates = pair.drafter.fates
        num_accepted += fates.accepted
        num_rejected += fates.rejected
        num_late += fates.late
        num_discarded += fates.discarded
        num_looked_up += pair.v.looked_up
        if pair.drafter.closed:
            assert pair.d.drafted == fates.total
    assert num_over > 1.8 * NUM_SCENARIOS, "most scenarios run to their end"
    least = min(num_accepted, num_rejected, num_late, num_discarded, num_looked_up)
    assert least > NUM_SCENARIOS, "every fate is met often"
