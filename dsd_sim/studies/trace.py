"""The log of a run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

Each verifier has a track with its passes, each device one with its draft steps, each pair a counter with its window,
and each request a span. Times in a trace are microseconds of virtual time.

Invariant: a trace holds the whole log, and all requests that arrived in the time of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dsd_sim.engine.world import PASS, STEER, STEP, World
from dsd_sim.scenario.scenario import Scenario

LOG_ROOM = 400_000  # entries; each takes about 130 bytes in a trace
BLOCK = 10_000  # entries converted to Python objects at once
VERIFIERS, DEVICES, REQUESTS = 1, 2, 3  # process ids in a trace


class TrackName(Struct, frozen=True):
    """The name of a process or a track."""

    name: str  # process_name or thread_name
    pid: int
    args: dict[str, str]
    tid: int = 0
    ph: str = "M"


class TrackSlice(Struct, frozen=True):
    """An interval on a track."""

    name: str
    pid: int
    tid: int
    ts: float
    dur: float
    args: dict[str, int]
    ph: str = "X"


class TraceCounter(Struct, frozen=True):
    """The value of a counter from `ts` on."""

    name: str
    pid: int
    ts: float
    args: dict[str, int]
    ph: str = "C"


class SpanMark(Struct, frozen=True):
    """The beginning (`ph` b) or end (`ph` e) of a span of a request; spans of one `id` are nested."""

    name: str
    ph: str
    ts: float
    id: str
    args: dict[str, int] = {}
    cat: str = "request"
    pid: int = REQUESTS
    tid: int = 0


TraceEvent: TypeAlias = TrackName | TrackSlice | TraceCounter | SpanMark


def log_of(world: World) -> NDArray[Any]:
    """The log, [entries]."""
    return np.asarray(world.log)[: int(world.clock[0]["num_logged"])]


def cut_ms(world: World) -> float | None:
    """Time at which the log was full; None if it holds the whole run."""
    log = log_of(world)
    return float(log["start"][-1]) if 0 < len(log) == len(world.log) else None


def write_trace(path: Path, scenario: Scenario, world: World) -> None:
    """Raises OSError if the file can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        about = encoder.encode({"scenario": scenario.name, "seed": scenario.seed})
        file.write(b'{"displayTimeUnit":"ms","otherData":' + about + b',"traceEvents":[')
        for index, event in enumerate(_events(scenario, world)):
            file.write((b",\n" if index else b"\n") + encoder.encode(event))
        file.write(b"\n]}\n")


def _events(scenario: Scenario, world: World) -> Iterator[TraceEvent]:
    devices = _names_of_devices(scenario, len(world.devices))
    yield from _names(devices, len(world.nodes))
    yield from _logged(scenario, world, devices)
    yield from _requests(world)


def _names_of_devices(scenario: Scenario, num_devices: int) -> list[str]:
    names = [f"{edge.name} {index}" for edge in scenario.edge for index in range(edge.count)]
    return names or [f"device {index}" for index in range(num_devices)]


def _names(devices: list[str], num_nodes: int) -> Iterator[TrackName]:
    for pid, name in ((VERIFIERS, "verifiers"), (DEVICES, "devices"), (REQUESTS, "requests")):
        yield TrackName("process_name", pid, {"name": name})
    for index in range(num_nodes):
        yield TrackName("thread_name", VERIFIERS, {"name": f"verifier {index}"}, tid=index)
    for index, name in enumerate(devices):
        yield TrackName("thread_name", DEVICES, {"name": name}, tid=index)


def _logged(scenario: Scenario, world: World, devices: list[str]) -> Iterator[TraceEvent]:
    num_nodes, log = len(world.nodes), log_of(world)
    steered: set[int] = set()
    for begin in range(0, len(log), BLOCK):
        for kind, who, request, num, start, end in log[begin : begin + BLOCK].tolist():
            ts, dur = 1000 * start, 1000 * (end - start)
            if kind == PASS:
                yield TrackSlice("pass", VERIFIERS, who, ts, dur, {"sessions": num})
            elif kind == STEP:
                yield TrackSlice("draft step", DEVICES, who, ts, dur, {"request": request, "fed": num})
            elif kind == STEER:
                name = f"window of {devices[who // num_nodes]} at verifier {who % num_nodes}"
                if who not in steered:
                    steered.add(who)
                    yield TraceCounter(name, DEVICES, 0.0, {"window": scenario.policies.window})
                yield TraceCounter(name, DEVICES, ts, {"window": num})


def _requests(world: World) -> Iterator[SpanMark]:
    end = cut_ms(world)
    columns = ("arrival_ms", "first_ms", "done_ms", "prompt", "tokens", "device", "node")
    found = zip(*(world.requests[name].tolist() for name in columns), strict=True)
    for index, (arrival, first, done, prompt, tokens, device, node) in enumerate(found):
        if end is not None and arrival > end:
            continue
        details = {"index": index, "prompt": prompt, "tokens": tokens, "device": device, "verifier": node}
        key = f"{index:#x}"
        yield SpanMark("request", "b", 1000 * arrival, key, details)
        yield SpanMark("to the first token", "b", 1000 * arrival, key)
        yield SpanMark("to the first token", "e", 1000 * first, key)
        yield SpanMark("answer", "b", 1000 * first, key)
        yield SpanMark("answer", "e", 1000 * done, key)
        yield SpanMark("request", "e", 1000 * done, key)
