"""The most memory that each container needs at once.

What counts is the working set, by which the kubelet evicts: usage without inactive pages of files, which the kernel can
drop.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from deploy.podman import pod_name
from tests.k8s.manifests import Manifest, containers_of, workloads

CONTROL = Path("/sys/fs/cgroup")
IS_UNIFIED = (CONTROL / "cgroup.controllers").exists()
GROUPS = CONTROL if IS_UNIFIED else CONTROL / "memory"
USAGE, INACTIVE = (
    ("memory.current", "inactive_file") if IS_UNIFIED else ("memory.usage_in_bytes", "total_inactive_file")
)
LOOK_S = 0.05


class MemoryWatch:
    """Looks at all containers of podman from `with` to its end."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = defaultdict(int)  # bytes, by the container's id
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_S):
            for group in GROUPS.rglob("libpod-*"):
                container = group.name.removeprefix("libpod-").removesuffix(".scope")
                self.peaks[container] = max(self.peaks[container], working_set(group))


def working_set(group: Path) -> int:
    """0 for a group that has just gone."""
    try:
        usage = int((group / USAGE).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return 0
    return max(0, usage - int(stat[INACTIVE]))


def requested_memory(manifests: list[Manifest]) -> dict[str, int]:
    """Bytes, by podman's name of the container."""
    return {
        f"{pod_name(workload)}-{container['name']}": in_bytes(container["resources"]["requests"]["memory"])
        for workload in workloads(manifests)
        for container in containers_of(workload)
    }


def in_bytes(quantity: str) -> int:
    units = {"Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
