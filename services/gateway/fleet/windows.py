"""The windows that controllers have decided, for the reports of answers and for GET /v1/dsd/windows.

Invariant: at most MAX_PAIRS are kept; the oldest is dropped first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shared.protocol.messages import WindowDecision

MAX_PAIRS = 4096


@dataclass(frozen=True, slots=True)
class HeardDecision:
    """A decision and its controller. heard_at: in seconds of the caller's clock."""

    decision: WindowDecision
    controller_id: str
    heard_at: float


class DecidedWindows:
    """The newest decision for each drafter-verifier pair."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], HeardDecision] = {}

    def __iter__(self) -> Iterator[HeardDecision]:
        """The newest decision of each pair, the oldest first."""
        return iter(self._newest.values())

    def observe(self, decision: WindowDecision, controller_id: str, now: float) -> None:
        pair = decision.drafter_id, decision.verifier_id
        self._newest.pop(pair, None)
        self._newest[pair] = HeardDecision(decision, controller_id, now)
        if len(self._newest) > MAX_PAIRS:
            del self._newest[next(iter(self._newest))]

    def window(self, drafter_id: str | None, verifier_id: str | None) -> int | None:
        """The window of a pair in tokens; None before any decision."""
        if drafter_id is None or verifier_id is None:
            return None
        heard = self._newest.get((drafter_id, verifier_id))
        return heard.decision.window if heard else None
