"""Instances that one session avoids for a while.

Invariant: an instance is avoided until its time has passed or it joins again, whichever comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Quarantine:
    """Verifiers and drafters that failed the session. Times are in seconds of the session's clock."""

    _until: dict[str, float] = field(default_factory=dict)  # by instance id

    def avoid(self, instance_id: str, until: float) -> None:
        self._until[instance_id] = until

    def release(self, instance_id: str) -> None:
        self._until.pop(instance_id, None)

    def avoided(self, now: float) -> set[str]:
        """Ids of the instances not to be chosen now."""
        return {instance_id for instance_id, until in self._until.items() if now < until}
