"""What the processes of a cell have used so far, from /proc, the NATS server's counts and the logs of the models.

Invariant: readings only grow, and a slice is the difference of two. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from benchmarks.harness.cell import RunningCell, own_mib, usage_of
from benchmarks.load import processor_time
from benchmarks.load.processor_time import ProcessorTime
from benchmarks.scale.results import CLIENT, CONTROLLER, DRAFTER, GATEWAY, NATS, SERVICES, VERIFIER, BusCounts, Slice
from benchmarks.scale.system import DRAFTERS
from benchmarks.standins.compute_log import ComputeRecord, read_compute_log

COMMITTED = re.compile(r"^dsd_verifier_committed_tokens_total (\S+)$", re.MULTILINE)
SERVICE_OF = {each: each for each in (GATEWAY, CONTROLLER, CLIENT)} | {"nats-server": NATS}
TIMEOUT = aiohttp.ClientTimeout(total=30)


def service_of(process: str) -> str:
    """The service of a process: verifier for verifier-3."""
    if process.startswith(DRAFTERS):
        return DRAFTER
    return SERVICE_OF.get(process, VERIFIER)


class Varz(msgspec.Struct, frozen=True):
    """Counts of a NATS server: `in` is published, `out` delivered."""

    in_msgs: int
    out_msgs: int
    in_bytes: int
    out_bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Sums since the start of the cell. at: of time.monotonic."""

    at: float
    cpu_s: dict[str, float]  # of each process
    num_tokens: float
    num_requests: int
    bus: Varz
    processor: ProcessorTime


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads a running cell."""

    cell: RunningCell
    monitor_url: str
    http: aiohttp.ClientSession

    async def read(self, num_requests: int = 0) -> Reading:
        """The figures of the bus and the tokens first: answering takes the services a moment."""
        async with asyncio.TaskGroup() as tasks:
            varz = tasks.create_task(self._varz())
            tokens = [tasks.create_task(self._committed(name)) for name in self._verifiers]
        pids = self.cell.pids()
        cpu_s = {name: usage_of(pid).cpu_s for name, pid in (pids | {CLIENT: os.getpid()}).items()}
        processor = processor_time.read(set(pids.values()))
        num_tokens = sum(each.result() for each in tokens)
        return Reading(time.monotonic(), cpu_s, num_tokens, num_requests, varz.result(), processor)

    def memory_mib(self) -> dict[str, float]:
        """Of each service."""
        found = dict.fromkeys(SERVICES, 0.0)
        for name, pid in self.cell.pids().items():
            found[service_of(name)] += own_mib(pid)
        return found

    @property
    def _verifiers(self) -> list[str]:
        return [name for name in self.cell.children if service_of(name) == VERIFIER]

    async def _varz(self) -> Varz:
        async with self.http.get(f"{self.monitor_url}/varz", timeout=TIMEOUT) as response:
            return msgspec.json.decode(await response.read(), type=Varz)

    async def _committed(self, name: str) -> float:
        async with self.http.get(f"{self.cell.children[name].urls[-1]}/metrics", timeout=TIMEOUT) as response:
            found = COMMITTED.search(await response.text())
        assert found is not None
        return float(found[1])


def read_logs(folder: Path) -> dict[str, list[ComputeRecord]]:
    """What the models of each process computed."""
    return {path.stem: read_compute_log(path) for path in folder.glob("*.jsonl")}


def between(records: list[ComputeRecord], begin: float, end: float) -> list[ComputeRecord]:
    """Those that ended between two times."""
    return [each for each in records if begin <= each.end_s < end]


def slice_of(before: Reading, after: Reading, logs: Mapping[str, list[ComputeRecord]]) -> Slice:
    """What was used between two readings. The models' part of it is subtracted."""
    used_s = {process: after.cpu_s[process] - before.cpu_s[process] for process in after.cpu_s}
    cpu_s: dict[str, float] = dict.fromkeys((*SERVICES, CLIENT), 0.0)
    for process, spent_s in used_s.items():
        cpu_s[service_of(process)] += spent_s
    model_cpu_s = 0.0
    for process, records in logs.items():
        spent_s = sum(each.cpu_s for each in between(records, before.at, after.at))
        cpu_s[service_of(process)] -= spent_s
        model_cpu_s += spent_s
    seconds, processor = after.at - before.at, (before.processor, after.processor)
    return Slice(
        seconds,
        after.num_tokens - before.num_tokens,
        after.num_requests - before.num_requests,
        cpu_s,
        model_cpu_s,
        _bus_between(before.bus, after.bus),
        (processor[1].own_s - processor[0].own_s) / seconds / (os.cpu_count() or 1),
        processor_time.foreign_share(*processor),
        max(used_s.values()) / seconds,
    )


def _bus_between(before: Varz, after: Varz) -> BusCounts:
    return BusCounts(
        after.in_msgs - before.in_msgs,
        after.out_msgs - before.out_msgs,
        after.in_bytes - before.in_bytes,
        after.out_bytes - before.out_bytes,
    )
