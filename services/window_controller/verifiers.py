"""Which verifiers are alive, by their heartbeats.

Invariant: at most `max_verifiers` are remembered, none longer than three of its heartbeat intervals or MAX_SILENCE_S.
"""

from __future__ import annotations

from shared.protocol.messages import Heartbeat

MISSED_BEATS = 3
MAX_SILENCE_S = 60.0  # whatever interval a heartbeat claims


class LiveVerifiers:
    """The verifiers that were heard lately. Times are seconds of one monotonic clock."""

    def __init__(self, max_verifiers: int) -> None:
        self._max_verifiers = max_verifiers
        self._alive_until: dict[str, float] = {}

    def hear(self, heartbeat: Heartbeat, now: float) -> bool:
        """Take a verifier's heartbeat; False when there are too many verifiers for one more."""
        if heartbeat.instance_id not in self._alive_until and len(self._alive_until) >= self._max_verifiers:
            return False
        silence_s = min(MISSED_BEATS * heartbeat.interval_s, MAX_SILENCE_S)
        self._alive_until[heartbeat.instance_id] = now + silence_s
        return True

    def is_live(self, verifier_id: str, now: float) -> bool:
        return self._alive_until.get(verifier_id, now) > now

    def expire(self, now: float) -> None:
        """Forget the silent ones."""
        self._alive_until = {name: until for name, until in self._alive_until.items() if until > now}

    def __len__(self) -> int:
        return len(self._alive_until)
