"""The default policy for all pairs of a simulated fleet, without Python for each report.

Invariant: it decides what the policy's own objects decide, in the same order, up to the rounding of sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from awc.estimators.verifier_cost import MAX_VERIFIERS
from awc.policies.adaptive import VALUE, AdaptivePolicy
from awc.policy import WindowChoice, WindowPolicy
from awc.wrappers import pausing
from awc.wrappers.pausing import PausingPolicy
from dsd_sim.steering import adaptive
from dsd_sim.steering.records import PAUSED, START, Settings, make_rows, with_more

NO_ROW = -1
FIRST_ROWS = 256


class CompiledSteering:
    """Decides for pairs by the numbers of their device and node. Equal policies decide alike."""

    def __init__(self, policy: PausingPolicy, active: AdaptivePolicy, num_devices: int, num_nodes: int) -> None:
        self._start = active.start
        self._chunk = max(active.start.chunk, 1)
        least = active.price / (active.price + VALUE)
        self._settings = Settings.of(active.start.window, self._chunk, least, policy.price, policy.settings)
        speeds = policy.settings.after_failed
        self._rows = make_rows(FIRST_ROWS, num_nodes, speeds, active.half_life, pausing.HALF_LIFE)
        self._numbers = np.full((num_devices, num_nodes), NO_ROW, np.int64)
        self._num_rows = 0

    @classmethod
    def of(cls, policy: WindowPolicy, num_devices: int, num_nodes: int) -> CompiledSteering | None:
        """None for a policy that is not compiled."""
        if type(policy) is not PausingPolicy or type(policy.active) is not AdaptivePolicy:
            return None
        return cls(policy, policy.active, num_devices, num_nodes) if num_nodes <= MAX_VERIFIERS else None

    def decide(
        self, devices: NDArray[np.intp], nodes: NDArray[np.intp], is_new: NDArray[np.bool_], reports: NDArray[Any]
    ) -> list[tuple[int, WindowChoice]]:
        """Decides on reports (records.SEEN) of different pairs. Returns the choices that differ from the one before of
        their pair, with the index of the report. is_new: the pair's history does not count."""
        numbers = self._numbers[devices, nodes]
        if (missing := np.flatnonzero(numbers == NO_ROW)).size:
            while self._num_rows + missing.size > len(self._rows.pairs):
                self._rows = with_more(self._rows)
            numbers[missing] = np.arange(self._num_rows, self._num_rows + missing.size)
            self._numbers[devices, nodes] = numbers
            self._num_rows += missing.size
            is_new = is_new.copy()
            is_new[missing] = True
        if is_new.any():
            adaptive.renew(self._settings, self._rows, numbers[is_new])
        found = adaptive.decide_all(self._settings, self._rows, numbers, nodes, reports)
        told = self._rows.pairs["told"][numbers]
        self._rows.pairs["told"][numbers] = found
        changed = np.flatnonzero(found != told).tolist()
        return [(number, self._choice(int(found[number]))) for number in changed]

    def restart(self) -> None:
        """All pairs begin anew. What is known of verifiers stays."""
        self._numbers[:] = NO_ROW
        self._num_rows = 0

    def _choice(self, decision: int) -> WindowChoice:
        if decision == START:
            return self._start
        if decision == PAUSED:
            return pausing.PAUSED
        return WindowChoice(decision, min(self._chunk, decision), free_run=True)
