"""Made-up results of cells, whose costs are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.harness.latency import Distribution
from benchmarks.harness.origin import Origin
from benchmarks.scale.cells import Cell
from benchmarks.scale.fit import Drivers
from benchmarks.scale.results import CLIENT, SERVICES, BusCounts, CellResult, PassGap, Prediction, Slice

ORIGIN = Origin("python -m benchmarks.scale", "2 cores of a test", "2026-01-01 00:00 UTC", "3.11")
SECONDS = 48.0  # a whole number of answers
COST = (1e-4, 2e-3, 1e-5, 2e-5, 3e-3, 5e-3)  # cores: of a token/s, request/s, session, drafter, verifier, and fixed

CpuOf = Callable[[Drivers], float]


def linear(drivers: Drivers) -> float:
    return sum(cost * value for cost, value in zip(COST, drivers.values(), strict=True))


def sample_slice(drivers: Drivers, cpu_of: CpuOf, noise: float, generator: random.Random) -> Slice:
    cpu_s = {name: cpu_of(drivers) * SECONDS * (1 + generator.uniform(-noise, noise)) for name in (*SERVICES, CLIENT)}
    num = round((5 * drivers.tokens_per_s + 3 * drivers.drafters + drivers.verifiers) * SECONDS)
    bus = BusCounts(num, 2 * num, 100 * num, 200 * num)
    num_tokens, num_requests = drivers.tokens_per_s * SECONDS, round(drivers.requests_per_s * SECONDS)
    return Slice(SECONDS, num_tokens, num_requests, cpu_s, 0.1, bus, 0.4, 0.01, 0.3)


def sample_result(
    cell: Cell, cpu_of: CpuOf = linear, noise: float = 0.0, complaints: Sequence[str] = (), seed: int = 1
) -> CellResult:
    generator = random.Random(f"{seed} {cell.name}")
    requests_per_s = cell.tokens_per_s / cell.answer_tokens
    loaded = Drivers(cell.tokens_per_s, requests_per_s, cell.sessions, cell.drafters, cell.verifiers)
    idle = Drivers(0.0, 0.0, 0, cell.drafters, cell.verifiers)
    times = Distribution(100, 400.0, 400.0, 500.0, 500.0, 600.0)
    idle_mib = dict.fromkeys(SERVICES, 50.0 + 0.1 * cell.drafters)
    return CellResult(
        cell,
        "digest",
        8.0,
        sample_slice(idle, cpu_of, noise, generator),
        [sample_slice(loaded, cpu_of, noise, generator) for _ in range(6)],
        idle_mib,
        {name: mib + 0.05 * cell.sessions for name, mib in idle_mib.items()},
        times,
        times,
        [40, 50],
        0.7,
        PassGap(1.0, 0.05),
        0,
        list(complaints),
        ORIGIN,
        Prediction(1.05 * cell.tokens_per_s, 390.0, 410.0),
    )
