"""Instances that one session avoids for a while.

Invariant: an instance whose heartbeats stopped is avoided until its time has passed or it joins again. One that failed
the session is avoided for its time, whatever it does, and each time for twice as long.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MAX_AVOID_S = 60.0


@dataclass(slots=True)
class Quarantine:
    """Verifiers and drafters that a session avoids, by their ids. Times are in seconds of the session's clock."""

    _until: dict[str, float] = field(default_factory=dict)
    _failed_until: dict[str, float] = field(default_factory=dict)
    _num_failures: Counter[str] = field(default_factory=Counter)

    def avoid(self, instance_id: str, until: float) -> None:
        self._until[instance_id] = until

    def avoid_longer(self, instance_id: str, now: float, first_s: float) -> None:
        """Avoids an instance that failed the session, for `first_s` the first time."""
        avoid_s = min(MAX_AVOID_S, first_s * 2 ** min(16, self._num_failures[instance_id]))
        self._num_failures[instance_id] += 1
        self._failed_until[instance_id] = now + avoid_s

    def release(self, instance_id: str) -> None:
        """The instance has joined again."""
        self._until.pop(instance_id, None)

    def avoided(self, now: float) -> set[str]:
        """Ids of the instances not to be chosen now."""
        found = (*self._until.items(), *self._failed_until.items())
        return {instance_id for instance_id, until in found if now < until}
