"""The instances that fell silent without a drain and have not come back: whom an operator has to look for.

Invariant: at most MAX_MISSING names, each for at most FORGET_S; the one that is missing longest goes first. No clock:
every call gets `now` in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shared.protocol.messages import Service

MAX_MISSING = 64
FORGET_S = 3600.0  # as long as the alerts look back


@dataclass(frozen=True, slots=True)
class LostPeer:
    """name: without the nonce of an instance."""

    service: Service
    name: str


@dataclass(slots=True)
class MissingPeers:
    """Those of one gateway."""

    _since: dict[LostPeer, float] = field(default_factory=dict)

    def update(self, lost: Iterable[LostPeer], is_known: Callable[[LostPeer], bool], now: float) -> frozenset[LostPeer]:
        """Takes who got lost since the last call. is_known: whether an instance of that name lives. Returns those that
        are missing now."""
        for peer in lost:
            self._since.pop(peer, None)
            self._since[peer] = now
        kept = [(peer, since) for peer, since in self._since.items() if now - since < FORGET_S and not is_known(peer)]
        self._since = dict(kept[-MAX_MISSING:])
        return frozenset(self._since)
