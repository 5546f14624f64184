"""The measured part of a run: from the arrival of the first request behind the warm-up to that of the last one.

Before, queues and batches are still filling; after, clients run out of requests. Without a warm-up all of the run
counts, from the first arrival to the last token.

Invariant: a request belongs to the measured part if it arrives in it. A rate counts the share of each answer that is
delivered in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dsd_sim.engine.world import World

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Totals:
    """What verifiers and drafters have done so far."""

    at_ms: float = 0.0
    num_windows: int = 0
    num_passes: int = 0
    sum_batch: float = 0.0
    sum_queue: float = 0.0
    verifier_busy_ms: float = 0.0  # mean over verifiers
    drafter_busy_ms: float = 0.0

    def since(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, name) - getattr(other, name) for name in Totals.__slots__))


def totals_of(world: World) -> Totals:
    nodes, clock = world.nodes, world.clock[0]
    return Totals(
        float(clock["now"]),
        int(clock["num_windows"]),
        int(nodes["num_passes"].sum()),
        float(nodes["sum_batch"].sum()),
        float(nodes["sum_queue"].sum()),
        float(nodes["busy_ms"].mean()),
        float(world.devices["busy_ms"].mean()),
    )


@dataclass
class MeasuredPart:
    """Takes the totals at both ends while a fleet runs. `warm_up`: share of the requests, the first ones; in a closed
    loop at least the first of each client, which all come at once."""

    warm_up: float = 0.0
    _num_arrived: int = 0
    _num_left_out: int = 0
    _begin: Totals | None = None
    _end: Totals | None = None

    def arrive(self, world: World) -> None:
        """One more request arrives."""
        if not self.warm_up:
            return
        num = len(world.requests)
        if self._num_arrived == 0:
            num_clients = int(world.requests["client"].max()) + 1  # 0 in an open loop
            self._num_left_out = max(int(self.warm_up * num), num_clients)
        if self._num_arrived == self._num_left_out:
            self._begin = totals_of(world)
        self._num_arrived += 1
        if self._num_arrived == num:
            self._end = totals_of(world)

    def ends_of(self, world: World) -> tuple[Totals, Totals]:
        """Both ends of a run that is over: of all of it where requests arrive too close together to measure between."""
        if self._begin is not None and self._end is not None and self._end.num_passes > self._begin.num_passes:
            return self._begin, self._end
        requests = world.requests
        first, last = float(requests["arrival_ms"].min()), float(requests["done_ms"].max())
        whole = totals_of(world)
        return Totals(first), Totals(max(last, first + 1e-6), *(getattr(whole, name) for name in Totals.__slots__[1:]))


def share_between(begin_ms: float, end_ms: float, requests: NDArray[Any]) -> Floats:
    """Share of each answer that is delivered between two times, as if its tokens came evenly, [requests]."""
    first, done = requests["first_ms"], requests["done_ms"]
    inside = np.minimum(done, end_ms) - np.maximum(first, begin_ms)
    length = done - first
    is_one = (done >= begin_ms) & (done <= end_ms)  # all its tokens came at once
    share: Floats = np.where(length > 0, np.maximum(inside, 0.0) / np.where(length > 0, length, 1.0), is_one)
    return share
