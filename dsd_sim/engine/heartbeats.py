"""Which devices and verifiers the gateway considers gone, judged by their heartbeats.

Invariant: an instance is gone after STALE_HEARTBEATS intervals without a heartbeat, as in the gateway.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.timing import STALE_HEARTBEATS


class Heartbeats:
    """Missed heartbeats of all devices and verifiers, which send them at the same times."""

    def __init__(self, num_devices: int, num_nodes: int) -> None:
        self._missed_by_devices = np.zeros(num_devices, np.int64)  # in a row
        self._missed_by_nodes = np.zeros(num_nodes, np.int64)

    def advance(self, are_devices_down: NDArray[np.bool_], are_nodes_down: NDArray[np.bool_]) -> None:
        """Counts one more interval, in which everything that is not down sent a heartbeat."""
        self._missed_by_devices = np.where(are_devices_down, self._missed_by_devices + 1, 0)
        self._missed_by_nodes = np.where(are_nodes_down, self._missed_by_nodes + 1, 0)

    def is_device_gone(self, index: int) -> bool:
        return bool(self._missed_by_devices[index] >= STALE_HEARTBEATS)

    def is_node_gone(self, index: int) -> bool:
        return bool(self._missed_by_nodes[index] >= STALE_HEARTBEATS)
