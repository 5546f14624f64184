"""The live verifiers, by their heartbeats.

Invariant: at most `max_verifiers`.
"""

from __future__ import annotations

from shared.protocol.messages import Heartbeat
from shared.timing import silence_s


class LiveVerifiers:
    """The verifiers with a recent heartbeat. Times are seconds of one monotonic clock."""

    def __init__(self, max_verifiers: int) -> None:
        self._max_verifiers = max_verifiers
        self._alive_until: dict[str, float] = {}

    def hear(self, heartbeat: Heartbeat, now: float) -> bool:
        """Records a heartbeat; False if the verifier is new and the table is full."""
        if heartbeat.instance_id not in self._alive_until and len(self._alive_until) >= self._max_verifiers:
            return False
        self._alive_until[heartbeat.instance_id] = now + silence_s(heartbeat.interval_s)
        return True

    def is_live(self, verifier_id: str, now: float) -> bool:
        return self._alive_until.get(verifier_id, now) > now

    def expire(self, now: float) -> None:
        """Removes silent verifiers."""
        self._alive_until = {name: until for name, until in self._alive_until.items() if until > now}

    def __len__(self) -> int:
        return len(self._alive_until)
