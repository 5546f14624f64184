"""How long each call into metrics takes, by itself: the fastest of several repeats, since machines are busy.

Invariant: every function that a service calls while it serves has a figure here, or the benchmark fails.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import Occupancy
from services.gateway.metrics import GatewayMetrics, SessionCounts
from shared.protocol.messages import Load, Tally
from shared.runtime.metrics import BusMetrics

REPEATS, CALLS = 2_000, 200  # so short a repeat often finds the processor free


def call_us() -> dict[str, float]:
    """Microseconds of a call, by the name of the function."""
    registry = CollectorRegistry()
    verifier, gateway, bus = VerifierMetrics(registry), GatewayMetrics(registry), BusMetrics(registry)
    histogram, gauge, tally = gateway.ttft_seconds, gateway.sessions, Tally(3, 1, 0, 2, 1)
    counts = SessionCounts(64, 128, tally, 0, 0, 0, None)
    load, occupancy = Load(), Occupancy(1, 0, 64.0, 0.1)
    calls: dict[str, Callable[[], object]] = {
        "inc": lambda: bus.published_as(Tally).inc(),
        "labels": lambda: verifier.dropped.labels("wrong verb"),
        "observe": lambda: histogram.observe(0.3),
        "set": lambda: gauge.set(3),
        "time": lambda: _timed(histogram),
        "track_inprogress": lambda: _tracked(gauge),
        "observe_pass": lambda: verifier.observe_pass(31.0, 4, 20, 12),
        "count_guesses": lambda: verifier.count_guesses(tally, tally),
        "observe_load": lambda: verifier.observe_load(load, occupancy),
        "count_session": lambda: gateway.count_session(counts),
        "count_request": lambda: gateway.count_request("key", 192),
        "count_lost": lambda: gateway.count_lost({}),
    }
    return {name: min(timeit.repeat(call, number=CALLS, repeat=REPEATS)) * 1e6 / CALLS for name, call in calls.items()}


def _timed(histogram: Histogram) -> None:
    with histogram.time():
        pass


def _tracked(gauge: Gauge) -> None:
    with gauge.track_inprogress():
        pass
