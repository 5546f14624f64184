"""The windows that controllers have decided, for the reports that answers carry.

Invariant: at most MAX_PAIRS are remembered, the oldest forgotten first.
"""

from __future__ import annotations

from shared.messages import WindowDecision

MAX_PAIRS = 4096


class DecidedWindows:
    """The newest window of each drafter-verifier pair that the gateway has heard of."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], int] = {}

    def observe(self, decision: WindowDecision) -> None:
        pair = decision.drafter_id, decision.verifier_id
        self._windows.pop(pair, None)
        self._windows[pair] = decision.window
        if len(self._windows) > MAX_PAIRS:
            del self._windows[next(iter(self._windows))]

    def window(self, drafter_id: str | None, verifier_id: str | None) -> int | None:
        """Unverified tokens that the drafter may have towards the verifier; None before any decision on them."""
        if drafter_id is None or verifier_id is None:
            return None
        return self._windows.get((drafter_id, verifier_id))
