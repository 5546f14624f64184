"""Which instances of a name count: the newest few.

The holder of one name, the least that a NATS key grants, is so one among many, however many nonces it draws.

Invariant: at most `per_name` instances of a name count. One that was replaced does not come back while any of them
lives. A name replaces an instance at most once in PAUSE_S, so that new nonces cost a receiver little. Times are seconds
of one clock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from shared.protocol.subjects import instance_name

PAUSE_S = 1.0
MAX_REPLACED = 64  # ids of a name that are remembered


@dataclass(slots=True)
class _Name:
    """Ids with the times of their joining, the newest last, and the ids that newer ones have replaced."""

    joined: dict[str, float] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)


class NewestInstances:
    """The instances of one service that count."""

    def __init__(self, per_name: int) -> None:
        self._per_name = per_name
        self._names: dict[str, _Name] = {}

    def may_join(self, instance_id: str, now: float) -> bool:
        """False for an instance that was replaced, or whose name has just replaced one."""
        name = self._names.get(instance_name(instance_id), _Name())
        is_early = self.is_full(instance_id) and now - max(name.joined.values()) < PAUSE_S
        return instance_id not in name.replaced and not is_early

    def is_full(self, instance_id: str) -> bool:
        """Whether an instance would replace another one."""
        joined = self._names.get(instance_name(instance_id), _Name()).joined
        return len(joined) >= self._per_name and instance_id not in joined

    def join(self, instance_id: str, now: float) -> str | None:
        """Counts an instance that may join. Returns the one that it replaces, the oldest of its name."""
        name, oldest = self._names.setdefault(instance_name(instance_id), _Name()), None
        if self.is_full(instance_id):
            oldest = next(iter(name.joined))
            del name.joined[oldest]
            name.replaced = [*name.replaced[1 - MAX_REPLACED :], oldest]
        name.joined.setdefault(instance_id, now)
        return oldest

    def ids_of(self, name: str) -> Collection[str]:
        """The instances of a name."""
        return self._names[name].joined.keys() if name in self._names else ()

    def leave(self, instance_id: str) -> None:
        """Forgets an instance, and what its name has replaced with the last one. It may join again."""
        key = instance_name(instance_id)
        if key in self._names:
            self._names[key].joined.pop(instance_id, None)
            if not self._names[key].joined:
                del self._names[key]
