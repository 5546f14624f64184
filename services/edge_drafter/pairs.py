"""What a drafter has seen of each verifier since its last report.

Invariant: each change of a session's counts enters exactly one report, that of the verifier which the session had when
the change happened. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean

from services.edge_drafter.sessions import SessionSlot
from shared.protocol.guesses import FATES, Fates
from shared.protocol.messages import PairReport, Verdict

WEIGHT = 0.2  # of the newest sample in moving averages
MAX_REPORTED_PAIRS = 256


def moving(average: float, sample: float, weight: float = WEIGHT) -> float:
    """The average after a further sample. The first sample is the average."""
    return sample if average == 0 else (1 - weight) * average + weight * sample


@dataclass(slots=True)
class PairStats:
    """Counts since the last report, and moving averages, of one verifier."""

    drafted: int = 0
    fates: Fates = field(default_factory=Fates)
    queue: float = 0.0
    gap_ms: float = 0.0  # between verdicts with tokens
    gap_tokens: float = 0.0  # in the later verdict
    rtt_ms: float = 0.0
    pass_ms: float = 0.0
    batch: float = 0.0
    pass_tokens: float = 0.0
    last_verdict: dict[str, float] = field(default_factory=dict)  # session id -> when its last tokens came

    @property
    def tpot_ms(self) -> float:
        """Mean time / mean tokens. The mean of their ratios would be too long if the number of tokens varies."""
        return self.gap_ms / self.gap_tokens if self.gap_tokens else 0.0

    @property
    def is_fresh(self) -> bool:
        return self.drafted + self.fates.total > 0


class PairTable:
    """The statistics of all verifiers that this drafter drafts for."""

    def __init__(self) -> None:
        self._pairs: dict[str, PairStats] = {}
        self.rtt_ms = 0.0  # to all verifiers, moving average; 0 before the first sample

    def absorb(self, slot: SessionSlot) -> Fates:
        """Adds the changes of a session's counts to its pair; returns the fates counted before.

        The first call after a rebind to another verifier still counts for the old one, which then forgets the session.
        """
        state, reported = slot.state, slot.reported
        pair, before = self._pair(reported.verifier_id), reported.fates
        pair.drafted += state.drafted - reported.drafted
        for fate in FATES:
            change = getattr(state.fates, fate) - getattr(before, fate)
            setattr(pair.fates, fate, getattr(pair.fates, fate) + change)
        reported.drafted, reported.fates = state.drafted, replace(state.fates)
        if reported.verifier_id != slot.verifier_id:
            pair.last_verdict.pop(state.session_id, None)
            reported.verifier_id = slot.verifier_id
            self._pair(slot.verifier_id)  # creates it: a pair with a session is reported
        return before

    def observe(self, slot: SessionSlot, verdict: Verdict, num_new: int, now: float) -> None:
        """Learns times from a verdict that committed `num_new` tokens.

        Without new tokens it tells of no pass, or of one that is counted already: it answers a Poll or a late Draft.
        """
        pair = self._pair(slot.verifier_id)
        if slot.state.round_trip.mean_ms is not None:
            pair.rtt_ms = slot.state.round_trip.mean_ms
            self.rtt_ms = moving(self.rtt_ms, pair.rtt_ms)
        if not num_new:
            return
        if verdict.batch:
            pair.queue = moving(pair.queue, verdict.queue)
            pair.pass_ms = moving(pair.pass_ms, verdict.compute_ms)
            pair.batch = moving(pair.batch, verdict.batch)
            pair.pass_tokens = moving(pair.pass_tokens, verdict.pass_tokens)
        last = pair.last_verdict.get(verdict.session_id)
        if last is not None:
            pair.gap_ms = moving(pair.gap_ms, now - last)
            pair.gap_tokens = moving(pair.gap_tokens, num_new)
        pair.last_verdict[verdict.session_id] = now

    def forget(self, slot: SessionSlot) -> None:
        """Forgets a session that is over."""
        self._pair(slot.verifier_id).last_verdict.pop(slot.state.session_id, None)

    def take_reports(
        self, slots: list[SessionSlot], windows: dict[str, int], guess_ms: Callable[[int], float]
    ) -> list[PairReport]:
        """Reports of all pairs with sessions or new counts, which are reset; other pairs are forgotten.

        guess_ms: milliseconds between two guesses of a session, by the number of sessions that draft. A pair's number
        is its own sessions plus the sessions of other pairs that draft now.
        """
        reports: list[PairReport] = []
        num_drafting = sum(slot.state.window > 0 for slot in slots)
        for verifier_id, pair in list(self._pairs.items()):
            mine = [slot for slot in slots if slot.verifier_id == verifier_id]
            if (mine or pair.is_fresh) and len(reports) < MAX_REPORTED_PAIRS:
                draft_ms = guess_ms(num_drafting + sum(slot.state.window == 0 for slot in mine))
                reports.append(self._report(verifier_id, pair, mine, windows[verifier_id], draft_ms))
                pair.drafted, pair.fates = 0, Fates()
            if not mine and not pair.is_fresh:
                del self._pairs[verifier_id]
        return reports

    def verifier_ids(self) -> list[str]:
        return list(self._pairs)

    def _pair(self, verifier_id: str) -> PairStats:
        return self._pairs.setdefault(verifier_id, PairStats())

    @staticmethod
    def _report(
        verifier_id: str, pair: PairStats, slots: list[SessionSlot], window: int, draft_ms: float
    ) -> PairReport:
        return PairReport(
            verifier_id=verifier_id,
            num_sessions=len(slots),
            window=window,
            drafted=pair.drafted,
            matched=pair.fates.accepted + pair.fates.late,
            mismatched=pair.fates.rejected,
            late=pair.fates.late,
            discarded=pair.fates.discarded,
            draft_ms=draft_ms,
            rtt_ms=pair.rtt_ms,
            queue=pair.queue,
            tpot_ms=pair.tpot_ms,
            context=int(fmean(len(slot.state.tokens) for slot in slots)) if slots else 0,
            pass_ms=pair.pass_ms,
            batch=pair.batch,
            pass_tokens=pair.pass_tokens,
        )
