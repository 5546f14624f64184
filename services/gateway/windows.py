"""The windows that controllers have decided, for the reports that answers carry.

Invariant: at most MAX_PAIRS are remembered, the oldest forgotten first.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.messages import WindowDecision

MAX_PAIRS = 4096


class DecidedWindows:
    """The newest window of each drafter-verifier pair that the gateway has heard of."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], WindowDecision] = {}

    def __iter__(self) -> Iterator[WindowDecision]:
        """The newest decisions, the oldest first."""
        return iter(self._newest.values())

    def observe(self, decision: WindowDecision) -> None:
        pair = decision.drafter_id, decision.verifier_id
        self._newest.pop(pair, None)
        self._newest[pair] = decision
        if len(self._newest) > MAX_PAIRS:
            del self._newest[next(iter(self._newest))]

    def window(self, drafter_id: str | None, verifier_id: str | None) -> int | None:
        """Unverified tokens that the drafter may have towards the verifier; None before any decision on them."""
        if drafter_id is None or verifier_id is None:
            return None
        decision = self._newest.get((drafter_id, verifier_id))
        return decision.window if decision else None
