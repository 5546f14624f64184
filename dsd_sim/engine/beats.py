"""Who is taken for alive by the heartbeats that came.

Invariant: an instance is gone when STALE_INTERVALS intervals have passed without one, as in the gateway's fleet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STALE_INTERVALS = 3


class Beats:
    """Of all devices and verifiers, which beat at the same times."""

    def __init__(self, num_devices: int, num_nodes: int) -> None:
        self._silent_devices = np.zeros(num_devices, np.int64)  # heartbeats missed in a row
        self._silent_nodes = np.zeros(num_nodes, np.int64)

    def hear(self, are_devices_down: NDArray[np.bool_], are_nodes_down: NDArray[np.bool_]) -> None:
        """One interval later."""
        self._silent_devices = np.where(are_devices_down, self._silent_devices + 1, 0)
        self._silent_nodes = np.where(are_nodes_down, self._silent_nodes + 1, 0)

    def is_device_gone(self, index: int) -> bool:
        return bool(self._silent_devices[index] >= STALE_INTERVALS)

    def is_node_gone(self, index: int) -> bool:
        return bool(self._silent_nodes[index] >= STALE_INTERVALS)
