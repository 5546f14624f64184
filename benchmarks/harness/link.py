"""Arrival times of segments on one direction of an emulated link. Pure.

Invariant: segments arrive in the order in which they were sent. The arrival time includes the transmission time of the
segment and of those before it, the delay, its jitter, and a retransmission if it was lost. The same seed gives the same
arrivals. Times are seconds of the caller's clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEGMENT_BYTES = 1448  # TCP payload of one Ethernet frame


@dataclass(frozen=True, slots=True)
class LinkConditions:
    """One direction of a link. Raises ValueError for a value out of bounds.

    A share `stall_rate` of segments is lost and arrives `stall_ms` later. Later segments wait for it, as for a TCP
    retransmission.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # added to each delay: uniform from 0 to this
    bandwidth_mbit: float = 0.0  # Mbit/s; 0: no limit
    stall_rate: float = 0.0
    stall_ms: float = 200.0

    def __post_init__(self) -> None:
        for name in ("delay_ms", "jitter_ms", "bandwidth_mbit", "stall_ms"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.stall_rate <= 1:
            raise ValueError(f"stall_rate must be 0…1, got {self.stall_rate}")

    @classmethod
    def of_round_trip(cls, rtt_ms: float) -> LinkConditions:
        """A link with half of `rtt_ms` in each direction."""
        return cls(delay_ms=rtt_ms / 2)


class EmulatedLink:
    """One direction."""

    def __init__(self, conditions: LinkConditions, seed: int) -> None:
        self.num_segments = 0
        self.num_stalls = 0
        self.conditions = conditions  # of the segments sent from now on
        self._random = random.Random(seed)
        self._free_at = 0.0  # when the last segment has left the sender
        self._newest = 0.0  # when the last segment arrives

    def send(self, now: float, num_bytes: int) -> float:
        """Sends a segment now; returns when it arrives."""
        conditions = self.conditions
        wire_s = num_bytes * 8 / (conditions.bandwidth_mbit * 1e6) if conditions.bandwidth_mbit else 0.0
        self._free_at = max(now, self._free_at) + wire_s
        late_ms = conditions.delay_ms + conditions.jitter_ms * self._random.random()
        if self._random.random() < conditions.stall_rate:
            late_ms += conditions.stall_ms
            self.num_stalls += 1
        self.num_segments += 1
        self._newest = max(self._newest, self._free_at + late_ms / 1e3)
        return self._newest
