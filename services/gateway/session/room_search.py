"""When a session that waits for KV cache looks for another verifier.

Invariant: the pauses between its moves grow, so that it does not give up its place in one queue after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEARCH_PAUSE_S = 60.0


@dataclass(slots=True)
class RoomSearch:
    """When a session that waits for KV cache may look for another verifier: at once, and after each move twice as late,
    because a move gives up its place in a queue."""

    due: float = 0.0
    _pause_s: float = 1.0

    def pause(self, now: float) -> None:
        self.due = now + self._pause_s
        self._pause_s = min(MAX_SEARCH_PAUSE_S, 2 * self._pause_s)
