"""A simulated pair, and reports with any figures, for tests of policies."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import strategies as st

from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

VERIFIER_ID = "cloud.0123456789ab"
STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)
WINDOWS = range(MAX_WINDOW + 1)


@dataclass
class World:
    """One pair in stop-and-wait with independent guesses: every round is drawn, and reported four times a second.

    The batch wavers by a fifth and the time of a pass by a twentieth, either way.
    """

    acceptance: float = 0.8
    rtt_ms: float = 20.0
    base_ms: float = 30.0
    per_token_ms: float = 0.0
    draft_ms: float = 5.0
    sessions: int = 8
    context: int = 0
    verifier_id: str = VERIFIER_ID
    gap_ms: float = 0.0  # moving averages, as a drafter keeps them
    gap_tokens: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def round_ms(self, window: int) -> float:
        passing = self.base_ms + self.per_token_ms * self.sessions * (window + 1)
        return passing + (self.rtt_ms + self.draft_ms * window if window else 0.0)

    def speed(self, window: int) -> float:
        """The truth: tokens per millisecond of one session."""
        return sum(self.acceptance**i for i in range(window + 1)) / self.round_ms(window)

    def best(self, windows: range | tuple[int, ...] = WINDOWS) -> float:
        return max(map(self.speed, windows))

    def report(self, window: int) -> PairReport:
        matched = mismatched = 0
        num_rounds = max(1, round(self.sessions * 250 / self.round_ms(window)))
        for _ in range(num_rounds):
            right = 0
            while right < window and self.chance.random() < self.acceptance:
                right += 1
            matched, mismatched = matched + right, mismatched + (right < window)
            newest = 0.2 if self.gap_tokens else 1.0
            self.gap_ms += newest * (self.round_ms(window) - self.gap_ms)
            self.gap_tokens += newest * (right + 1 - self.gap_tokens)
        batch = max(1.0, self.sessions * self.chance.uniform(0.8, 1.2))
        tokens = batch * (window + 1)
        return PairReport(
            verifier_id=self.verifier_id,
            num_sessions=self.sessions,
            window=window,
            drafted=num_rounds * window,
            matched=matched,
            mismatched=mismatched,
            late=0,
            discarded=num_rounds * window - matched - mismatched,
            draft_ms=self.draft_ms,
            rtt_ms=self.rtt_ms,
            queue=0.1,
            tpot_ms=self.gap_ms / self.gap_tokens,
            context=self.context,
            pass_ms=(self.base_ms + self.per_token_ms * tokens) * self.chance.uniform(0.95, 1.05),
            batch=batch,
            pass_tokens=tokens,
        )


count = st.one_of(st.integers(0, 40), st.integers(0, 1 << 48))
number = st.one_of(st.just(0.0), st.floats(0, 100), st.floats(0, 1e15), st.just(1e15))
ANY_REPORT = st.builds(
    PairReport,
    verifier_id=st.sampled_from([VERIFIER_ID, "other.0123456789ab"]),
    num_sessions=count,
    window=st.integers(0, MAX_WINDOW),
    drafted=count,
    matched=count,
    mismatched=count,
    late=count,
    discarded=count,
    draft_ms=number,
    rtt_ms=number,
    queue=st.floats(0, 1),
    tpot_ms=number,
    context=count,
    pass_ms=number,
    batch=number,
    pass_tokens=number,
)
