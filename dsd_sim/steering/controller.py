"""The window controller of a simulated fleet: what it keeps of its pairs, and what it decides on their reports.

Invariant: a policy that is not compiled is called as the service calls it, and gets only plausible reports.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from awc.policy import PairControl, WindowChoice, WindowPolicy, decide_all, is_plausible
from dsd_sim.engine.pair_reports import SeenPairs
from dsd_sim.steering import adaptive
from dsd_sim.steering.steering import CompiledSteering
from shared.timing import PAIR_EXPIRY_S

EXPIRY_MS = 1e3 * PAIR_EXPIRY_S  # a pair without reports is forgotten after this time
NEVER_MS = -np.inf


class SimController:
    """Pairs are known by the numbers of their device and node; `verifier_ids` are those of the nodes."""

    def __init__(self, policy: WindowPolicy, num_devices: int, verifier_ids: list[str], shares_machine: bool) -> None:
        self._policy, self._verifier_ids, self._shares_machine = policy, verifier_ids, shares_machine
        self._compiled = CompiledSteering.of(policy, num_devices, len(verifier_ids))
        self._controls: dict[tuple[int, int], PairControl] = {}
        self._heard_ms = np.full((num_devices, len(verifier_ids)), NEVER_MS)  # time of each pair's newest report

    def decide(
        self, seen: SeenPairs, devices: NDArray[np.intp], nodes: NDArray[np.intp], now: float
    ) -> Iterator[tuple[int, int, WindowChoice]]:
        """Decides on these reports at once, as a controller does with those that arrive together. Yields devices and
        nodes with their choices; choices that did not change may be missing."""
        if self._compiled is not None:
            reports = seen.records(self._shares_machine)
            chosen = adaptive.plausible(reports)
            devices, nodes, reports = devices[chosen], nodes[chosen], reports[chosen]
            for number, choice in self._compiled.decide(devices, nodes, self._hear(devices, nodes, now), reports):
                yield int(devices[number]), int(nodes[number]), choice
            return
        found = seen.reports([self._verifier_ids[node] for node in nodes.tolist()], self._shares_machine)
        plausible = [number for number, report in enumerate(found) if is_plausible(report)]
        if len(plausible) < len(found):
            found, devices, nodes = [found[number] for number in plausible], devices[plausible], nodes[plausible]
        keys = list(zip(devices.tolist(), nodes.tolist(), strict=True))
        for key, is_new in zip(keys, self._hear(devices, nodes, now).tolist(), strict=True):
            if is_new or key not in self._controls:
                self._controls[key] = self._policy.for_pair()
        choices = decide_all(self._policy, [self._controls[key] for key in keys], found)
        for key, choice in zip(keys, choices, strict=True):
            yield *key, choice

    def _hear(self, devices: NDArray[np.intp], nodes: NDArray[np.intp], now: float) -> NDArray[np.bool_]:
        """Notes reports of these pairs; which of them had expired."""
        expired: NDArray[np.bool_] = now - self._heard_ms[devices, nodes] > EXPIRY_MS
        self._heard_ms[devices, nodes] = now
        return expired

    def heard_ms(self, device: int, node: int) -> float:
        """Time of the pair's newest report; NEVER_MS: there was none."""
        return float(self._heard_ms[device, node])

    def restart(self) -> None:
        """It loses its state of pairs."""
        self._controls.clear()
        if self._compiled is not None:
            self._compiled.restart()

    def forget(self, device: int, node: int) -> None:
        """The pair begins anew."""
        self._heard_ms[device, node] = NEVER_MS
        self._controls.pop((device, node), None)
