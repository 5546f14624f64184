"""Prometheus metrics that every service has. Each instance has its own registry, so several fit in one process.

Invariant: names start with dsd_ and end in their unit. Labels come from small closed sets, never from ids or messages.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

DROPS = ("malformed", "incomplete", "handler failed", "not connected", "outbound full")
ERRORS = ("connection", "permission violation")


def by_kind(counter: Counter) -> Callable[[type], Counter]:
    """A cached look-up of the child of a class, in a counter labelled by class name.

    Without the cache it takes longer than decoding a message.
    """
    return cache(lambda kind: counter.labels(kind.__name__))


def begin_at_zero(counter: Counter, values: Iterable[str]) -> None:
    """Shows the values of a counter's only label from the start, so that rates count the first event."""
    for value in values:
        counter.labels(value)


class QuickHistogram(Collector):
    """A histogram without labels for what happens at every pass: made up when it is scraped, observed in a fifth of the
    time. One thread observes."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(map(float, buckets))
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


class BusMetrics:
    """Messages that one member of the bus sent, received and lost; labels are names of message classes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.published = counter("dsd_bus_published_messages", "Messages published", ["message"])
        self.received = counter("dsd_bus_received_messages", "Messages delivered to handlers", ["message"])
        self.published_as, self.received_as = by_kind(self.published), by_kind(self.received)
        self.dropped = counter(
            "dsd_bus_dropped_messages",
            "Messages lost here: malformed, incomplete, handler failed, not connected, outbound full",
            ["reason"],
        )
        begin_at_zero(self.dropped, DROPS)
        self.errors = counter(
            "dsd_bus_errors",
            "Errors reported by the client or server: connection, permission violation",
            ["kind"],
        )
        begin_at_zero(self.errors, ERRORS)
        self.reconnects = counter("dsd_bus_reconnects", "Reconnections")


class ProcessMetrics:
    """Metrics of the process itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("dsd_ready", "1 if the service is ready", registry=registry)
        self.connected = Gauge("dsd_bus_connected", "1 while connected to NATS", registry=registry)
        self.loop_lag_seconds = Gauge(
            "dsd_event_loop_lag_seconds", "Lag of the event loop, last measurement", registry=registry
        )
        self.tasks = Gauge("dsd_asyncio_tasks", "Unfinished tasks of the event loop that answers", registry=registry)
        self.tasks.set_function(_num_tasks)


def _num_tasks() -> int:
    """Counted at each scrape, so that tasks cost nothing more. 0 outside of an event loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


class TraceMetrics:
    """Spans of traces, where these are on."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.spans = Counter("dsd_trace_spans", "Spans of traces, by how far they came", ["stage"], registry=registry)
