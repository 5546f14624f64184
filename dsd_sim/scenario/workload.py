"""From a workload table to requests: arrivals and lengths, as columns.

Invariant: equal workloads and seeds give equal requests, ordered by arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias, assert_never

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from dsd_sim.engine.world import NOBODY
from dsd_sim.scenario.demand import (
    Between,
    Bursts,
    Closed,
    Diurnal,
    Histogram,
    Length,
    Lengths,
    MeasuredLengths,
    Poisson,
    Trace,
    Workload,
)
from dsd_sim.scenario.table import MOST, BadScenario, naming_key

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Requests:
    """Columns, [requests]. `client`: NOBODY in an open loop. `tier`: device_tier of a trace, else None."""

    arrival_ms: Floats
    prompt: Ints
    answer: Ints
    max_tokens: Ints
    client: Ints
    tier: tuple[str | None, ...]


class TraceArrival(Struct, frozen=True):
    """One line of a trace; other keys are ignored."""

    arrival_ms: Annotated[float, Meta(ge=0)]
    prompt_tokens: Annotated[int, Meta(ge=1, le=MOST)]
    target_tokens: Annotated[int, Meta(ge=1, le=MOST)]
    device_tier: str | None = None


@dataclass(frozen=True, slots=True)
class LoadChange:
    """From at_ms on, the request rate (closed loop: number of clients) is `factor` times that at the start."""

    at_ms: float
    factor: float


def with_rate_changes(requests: Requests, changes: Sequence[LoadChange]) -> Requests:
    """The same requests in an open loop whose rate changes: the gaps between arrivals are divided by the factor."""
    starts = np.array([0.0, *(change.at_ms for change in changes)])
    factors = np.array([1.0, *(change.factor for change in changes)])
    unscaled = np.concatenate(([0.0], np.cumsum(np.diff(starts) * factors[:-1])))  # arrival time that maps to a start
    span = np.searchsorted(unscaled, requests.arrival_ms, side="right") - 1
    return replace(requests, arrival_ms=starts[span] + (requests.arrival_ms - unscaled[span]) / factors[span])


def with_joining_clients(requests: Requests, changes: Sequence[LoadChange]) -> Requests:
    """The same requests in a closed loop that clients join over time. Factors must not fall."""
    num = int(requests.client.max()) + 1
    counts = [num, *(round(num * change.factor) for change in changes)]
    starts = np.repeat([0.0, *(change.at_ms for change in changes)], np.diff([0, *counts]))
    client = np.arange(len(requests.client)) % counts[-1]
    return replace(requests, client=client, arrival_ms=starts[client])


def make_requests(workload: Workload, folder: Path, rng: np.random.Generator) -> Requests:
    """`folder`: base of the workload's file names. Raises BadScenario for a file that can't be used."""
    if isinstance(workload, Trace):
        return _read_trace(folder / workload.file, workload.speed)
    if isinstance(workload, Closed):
        clients = np.arange(workload.num_requests) % workload.num_clients
        return _of_lengths(workload.lengths, folder, np.zeros(workload.num_requests), clients, rng)
    nobody = np.full(workload.num_requests, NOBODY)
    return _of_lengths(workload.lengths, folder, _arrivals(workload, rng), nobody, rng)


def _of_lengths(lengths: Lengths, folder: Path, arrival_ms: Floats, client: Ints, rng: np.random.Generator) -> Requests:
    num = len(arrival_ms)
    source = lengths if lengths.file is None else _read_lengths(folder / lengths.file)
    assert source.prompt is not None
    assert source.answer is not None
    prompt, answer = _draw(source.prompt, num, rng), _draw(source.answer, num, rng)
    answer = np.minimum(answer, lengths.max_tokens)
    return Requests(arrival_ms, prompt, answer, np.full(num, lengths.max_tokens), client, (None,) * num)


def _read_lengths(path: Path) -> MeasuredLengths:
    with naming_key(f"workload.lengths.file: {path} is not a file of lengths"):
        return MeasuredLengths.model_validate_json(path.read_bytes())


def _draw(length: Length, num: int, rng: np.random.Generator) -> Ints:
    match length:
        case int():
            return np.full(num, length, np.int64)
        case Between(low=low, high=high):
            return rng.integers(low, high + 1, num)
        case Histogram(edges=edges, counts=counts):
            bins = rng.choice(len(counts), num, p=np.array(counts) / sum(counts))
            lows, highs = np.array(edges)[bins], np.array(edges)[bins + 1]
            return rng.integers(lows, highs)
    assert_never(length)


def _arrivals(workload: Poisson | Bursts | Diurnal, rng: np.random.Generator) -> Floats:
    num = workload.num_requests
    match workload:
        case Poisson(rate_per_s=rate):
            return np.cumsum(rng.exponential(1000 / rate, num))
        case Bursts():
            return _bursts(workload, rng)
        case Diurnal(mean_per_s=mean, swing=swing, period_s=period):
            return _thinned(mean, swing, period, num, rng)
    assert_never(workload)


def _bursts(workload: Bursts, rng: np.random.Generator) -> Floats:
    """Arrivals of alternating calm and busy times, calm first."""
    parts: list[Floats] = []
    start, num_left, is_busy = 0.0, workload.num_requests, False
    while num_left > 0:
        rate = workload.busy_per_s if is_busy else workload.calm_per_s
        length = 1000 * rng.exponential(workload.busy_s if is_busy else workload.calm_s)
        times = np.sort(rng.uniform(0, length, rng.poisson(rate * length / 1000)))[:num_left]
        parts.append(start + times)
        start, num_left, is_busy = start + length, num_left - len(times), not is_busy
    return np.concatenate(parts)


def _thinned(mean: float, swing: float, period_s: float, num: int, rng: np.random.Generator) -> Floats:
    """Thins a Poisson process at the highest rate: an arrival stays with probability rate(t) / highest rate."""
    times = np.empty(0)
    last = 0.0
    while len(times) < num:
        drawn = last + np.cumsum(rng.exponential(1000 / (mean * (1 + swing)), num))
        last = float(drawn[-1])
        share = (1 + swing * np.sin(2 * np.pi * drawn / (1000 * period_s))) / (1 + swing)
        times = np.concatenate((times, drawn[rng.random(num) < share]))
    return times[:num]


def _read_trace(path: Path, speed: float) -> Requests:
    arrivals: list[TraceArrival] = []
    decoder = msgspec.json.Decoder(TraceArrival)
    with naming_key("workload.file"):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            arrival = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadScenario(f"{path}: line {number}: {error}") from error
        if arrivals and arrival.arrival_ms < arrivals[-1].arrival_ms:
            raise BadScenario(f"{path}: line {number}: arrival_ms {arrival.arrival_ms} is before the line above it")
        arrivals.append(arrival)
    if not arrivals:
        raise BadScenario(f"workload.file: {path}: the trace is empty")
    answer = np.array([arrival.target_tokens for arrival in arrivals])
    return Requests(
        arrival_ms=np.array([(arrival.arrival_ms - arrivals[0].arrival_ms) / speed for arrival in arrivals]),
        prompt=np.array([arrival.prompt_tokens for arrival in arrivals]),
        answer=answer,
        max_tokens=answer,
        client=np.full(len(arrivals), NOBODY),
        tier=tuple(arrival.device_tier for arrival in arrivals),
    )
