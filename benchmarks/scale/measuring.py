"""Measures one cell: starts its processes, lets its clients ask, and reads what everything used.

Invariant: figures are of the time in which all sessions of the cell are open. Whatever makes them wrong is a complaint,
which voids the cell.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from benchmarks.harness.cell import RunningCell, running
from benchmarks.harness.latency import Distribution, RequestSample, acceptance_of
from benchmarks.harness.origin import Origin
from benchmarks.harness.requests import connected
from benchmarks.harness.standin import OVERRUN
from benchmarks.load import processor_time
from benchmarks.load.processor_time import MAX_FOREIGN_SHARE
from benchmarks.scale.cells import Cell, Timing
from benchmarks.scale.load import Load
from benchmarks.scale.readings import Reader, Reading, between, read_logs, service_of, slice_of
from benchmarks.scale.results import VERIFIER, CellResult, PassGap, Slice, joined
from benchmarks.scale.system import ScalePlan, plan_of, write_inputs
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.calibration import NotCalibrated, fit_gaps
from services.gateway.text.tokenizer import load_tokenizer

MAX_OVERRUNS = 0.01  # of passes and draft steps: each took longer than its stand-in's profile says
BUSY = "other programs were allowed to compute"


class TooShort(RuntimeError):
    """No answer ended while the cell was measured."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all cells have in common."""

    models: Path
    timing: Timing
    inputs: str
    origin: Origin
    may_be_busy: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read from a running cell: without sessions, at both ends of each slice, and the requests."""

    idle: tuple[Reading, Reading]
    loaded: list[Reading]
    idle_mib: dict[str, float]
    loaded_mib: dict[str, float]
    samples: list[RequestSample]
    complaints: list[str]


async def measure(run: Run, cell: Cell, slower: float, notify: Callable[[str], None]) -> CellResult:
    """A finished cell, without a prediction. slower: factor of the models' times."""
    with TemporaryDirectory(prefix="dsd-scale-") as place:
        folder = Path(place)
        inputs = write_inputs(cell, slower, load_tokenizer(run.models / "target"), folder)
        plan = plan_of(cell, inputs, slower, run.models, run.timing, folder)
        async with running(plan, folder / "run", notify) as system:
            observed = await _observe(cell, plan, system, inputs.prompts, run.timing)
        assert plan.compute_logs is not None
        return _result(run, cell, slower, observed, read_logs(plan.compute_logs))


async def _observe(
    cell: Cell, plan: ScalePlan, system: RunningCell, prompts: Sequence[str], timing: Timing
) -> Observed:
    async with connected(system.url, plan.api_keys[0]) as gateway, aiohttp.ClientSession() as http:
        reader = Reader(system, f"http://127.0.0.1:{plan.monitor_port}", http)
        before = await reader.read()
        await asyncio.sleep(timing.idle_s)
        idle, idle_mib = (before, await reader.read()), reader.memory_mib()
        load = Load(cell, system.url, plan.api_keys, prompts, await gateway.first_model())
        async with asyncio.TaskGroup() as tasks:
            clients = tasks.create_task(load.run(), name="clients")
            await load.wait_until_steady()
            system.begin()
            readings = [await reader.read(load.num_ended)]
            for _ in range(timing.num_slices):
                await asyncio.sleep(timing.slice_s)
                readings.append(await reader.read(load.num_ended))
            loaded_mib, samples, complaints = reader.memory_mib(), load.since(readings[0].at), system.complaints()
            clients.cancel()
    return Observed(idle, readings, idle_mib, loaded_mib, samples, complaints)


def _result(
    run: Run, cell: Cell, slower: float, observed: Observed, logs: dict[str, list[ComputeRecord]]
) -> CellResult:
    idle = slice_of(*observed.idle, logs)
    slices = [slice_of(before, after, logs) for before, after in itertools.pairwise(observed.loaded)]
    begin, end = observed.loaded[0].at, observed.loaded[-1].at
    window = {name: between(records, begin, end) for name, records in logs.items()}
    ttft = Distribution.of([each.ttft_ms for each in observed.samples if each.ttft_ms is not None])
    tpot = Distribution.of([each.tpot_ms for each in observed.samples if each.tpot_ms is not None])
    if ttft is None or tpot is None:
        raise TooShort(f"{cell.name}: no answer ended in {end - begin:.0f} s")
    num_overruns = sum(OVERRUN in each for each in observed.complaints)
    num_steps = sum(map(len, window.values()))
    complaints = [each for each in observed.complaints if OVERRUN not in each]
    complaints += _complaints(run, idle, slices)
    if num_overruns > MAX_OVERRUNS * num_steps:
        complaints.append(f"{num_overruns} of {num_steps} passes and draft steps took longer than they should")
    return CellResult(
        cell,
        run.inputs,
        slower,
        idle,
        slices,
        observed.idle_mib,
        observed.loaded_mib,
        ttft,
        tpot,
        [each.num_prompt_tokens for each in observed.samples],
        acceptance_of(observed.samples),
        _gap([records for name, records in window.items() if service_of(name) == VERIFIER]),
        num_overruns,
        complaints,
        run.origin,
    )


def _complaints(run: Run, idle: Slice, slices: Sequence[Slice]) -> list[str]:
    if run.may_be_busy:
        return [BUSY]
    whole = joined(slices)
    found = [complaint] if (complaint := whole.complaint) else []
    for name, each in (("before", idle), ("during", whole)):
        if processor_time.is_void(each.foreign_share, each.seconds):
            limit = f"at most {MAX_FOREIGN_SHARE:.0%} may be"
            found.append(f"something else used {each.foreign_share:.1%} of a core {name} the load; {limit}")
    return found


def _gap(passes: Sequence[Sequence[ComputeRecord]]) -> PassGap:
    try:
        return PassGap(*fit_gaps(passes))
    except NotCalibrated:
        return PassGap(0.0, 0.0)
