"""The quick histogram says what prometheus_client's own says, counters begin at zero, tasks are counted at a scrape."""

from __future__ import annotations

import asyncio
import random

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from shared.runtime.metrics import DROPS, BusMetrics, ProcessMetrics, QuickHistogram

BUCKETS = (0.005, 0.01, 1, 2.5)


def test_a_quick_histogram_exposes_what_the_library_s_histogram_does() -> None:
    quick, plain = CollectorRegistry(), CollectorRegistry()
    ours = QuickHistogram("dsd_times_seconds", "Times", BUCKETS, quick)
    theirs = Histogram("dsd_times_seconds", "Times", buckets=BUCKETS, registry=plain)
    generator = random.Random(4)
    for value in (0.005, 1, 2.5, 7, *(generator.expovariate(1) for _ in range(100))):
        ours.observe(value)
        theirs.observe(value)
    assert lines_of(quick) == lines_of(plain)


def lines_of(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_an_event_that_alerts_watch_for_is_counted_from_zero() -> None:
    registry = CollectorRegistry()
    BusMetrics(registry)
    for reason in DROPS:
        assert registry.get_sample_value("dsd_bus_dropped_messages_total", {"reason": reason}) == 0


async def test_unfinished_tasks_are_counted_at_each_scrape() -> None:
    registry, stop = CollectorRegistry(), asyncio.Event()
    ProcessMetrics(registry)

    def counted() -> float:
        return next(float(line.split()[1]) for line in lines_of(registry) if line.startswith("dsd_asyncio_tasks "))

    before = counted()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(7):
            tasks.create_task(stop.wait())
        assert counted() == before + 7
        stop.set()
    assert counted() == before >= 1, "this test runs in one"


def test_outside_of_an_event_loop_no_tasks_are_counted() -> None:
    registry = CollectorRegistry()
    ProcessMetrics(registry)
    assert registry.get_sample_value("dsd_asyncio_tasks") == 0
