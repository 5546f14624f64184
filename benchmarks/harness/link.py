"""When each segment that enters one direction of an emulated link comes out at its far end: a pure schedule.

Invariant: segments come out in the order in which they went in, each behind the time that the bandwidth takes for it
and all before it, the delay, its jitter, and a retransmission where it was lost. The same seed gives the same fates.
Times are seconds of the caller's clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEGMENT_BYTES = 1448  # what TCP puts into one Ethernet frame


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a link. Raises ValueError for a value out of bounds.

    A share `stall_rate` of segments is lost and comes `stall_ms` later, and all behind it wait, as behind a
    retransmission of TCP.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # added to the delay of a segment: uniform from 0 to this
    bandwidth_mbit: float = 0.0  # per second; 0: no limit
    stall_rate: float = 0.0
    stall_ms: float = 200.0

    def __post_init__(self) -> None:
        for name in ("delay_ms", "jitter_ms", "bandwidth_mbit", "stall_ms"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 or more")
        if not 0 <= self.stall_rate <= 1:
            raise ValueError(f"stall_rate {self.stall_rate} must be 0 to 1")

    @classmethod
    def of_round_trip(cls, rtt_ms: float) -> Conditions:
        """Half of it in each direction, and nothing else."""
        return cls(delay_ms=rtt_ms / 2)


class Link:
    """One direction."""

    def __init__(self, conditions: Conditions, seed: int) -> None:
        self.num_segments = 0
        self.num_stalls = 0
        self._conditions = conditions
        self._random = random.Random(seed)
        self._free_at = 0.0  # when the wire has taken all that was sent
        self._newest = 0.0  # when the newest segment comes out

    def send(self, now: float, num_bytes: int) -> float:
        """A segment goes in now; when it comes out."""
        conditions = self._conditions
        wire_s = num_bytes * 8 / (conditions.bandwidth_mbit * 1e6) if conditions.bandwidth_mbit else 0.0
        self._free_at = max(now, self._free_at) + wire_s
        late_ms = conditions.delay_ms + conditions.jitter_ms * self._random.random()
        if self._random.random() < conditions.stall_rate:
            late_ms += conditions.stall_ms
            self.num_stalls += 1
        self.num_segments += 1
        self._newest = max(self._newest, self._free_at + late_ms / 1e3)
        return self._newest
