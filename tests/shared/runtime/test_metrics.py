"""The quick histogram says what prometheus_client's own says, and counters begin at zero."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from shared.runtime.metrics import DROPS, BusMetrics, QuickHistogram

BUCKETS = (0.005, 0.01, 1, 2.5)


def test_a_quick_histogram_exposes_what_the_library_s_histogram_does() -> None:
    quick, plain = CollectorRegistry(), CollectorRegistry()
    ours = QuickHistogram("dsd_times_seconds", "Times", BUCKETS, quick)
    theirs = Histogram("dsd_times_seconds", "Times", buckets=BUCKETS, registry=plain)
    generator = random.Random(4)
    for value in (0.005, 1, 2.5, 7, *(generator.expovariate(1) for _ in range(100))):
        ours.observe(value)
        theirs.observe(value)
    lines = [
        [line for line in generate_latest(each).decode().splitlines() if "_created" not in line]
        for each in (quick, plain)
    ]
    assert lines[0] == lines[1]


def test_an_event_that_alerts_watch_for_is_counted_from_zero() -> None:
    registry = CollectorRegistry()
    BusMetrics(registry)
    for reason in DROPS:
        assert registry.get_sample_value("dsd_bus_dropped_messages_total", {"reason": reason}) == 0
