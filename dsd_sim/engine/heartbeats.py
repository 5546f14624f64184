"""Which devices and verifiers the gateway considers gone, judged by their heartbeats.

Invariant: an instance is gone after STALE_HEARTBEATS intervals without a heartbeat, as in the gateway.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.timing import STALE_HEARTBEATS


class Heartbeats:
    """Missed heartbeats of all devices, or of all verifiers, which send them at the same times."""

    def __init__(self, num: int) -> None:
        self._num_missed = np.zeros(num, np.int64)  # in a row

    def advance(self, is_down: NDArray[np.bool_]) -> None:
        """Counts one more interval, in which everything that is not down sent a heartbeat."""
        self._num_missed = np.where(is_down, self._num_missed + 1, 0)

    def is_gone(self, index: int) -> bool:
        return bool(self._num_missed[index] >= STALE_HEARTBEATS)
