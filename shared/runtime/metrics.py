"""Prometheus metrics that every service has. Each instance has its own registry, so several fit in one process.

Invariant: names start with dsd_ and end in their unit. Labels come from small closed sets, never from ids or messages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge


def by_kind(counter: Counter) -> Callable[[type], Counter]:
    """A cached look-up of the child of a class, in a counter labelled by class name.

    Without the cache it takes longer than decoding a message.
    """
    return cache(lambda kind: counter.labels(kind.__name__))


class BusMetrics:
    """Messages that one member of the bus sent, received and lost; labels are names of message classes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.published = counter("dsd_bus_published", "Messages published", ["message"])
        self.received = counter("dsd_bus_received", "Messages delivered to handlers", ["message"])
        self.published_as, self.received_as = by_kind(self.published), by_kind(self.received)
        self.dropped = counter(
            "dsd_bus_dropped",
            "Messages lost here: malformed, incomplete, handler failed, not connected, outbound full",
            ["reason"],
        )
        self.dropped.labels("incomplete")  # exists from the start, so that rates count the first drop
        self.errors = counter(
            "dsd_bus_errors",
            "Errors reported by the client or server: connection, permission violation",
            ["kind"],
        )
        self.reconnects = counter("dsd_bus_reconnects", "Reconnections")


class ProcessMetrics:
    """Metrics of the process itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("dsd_ready", "1 if the service is ready", registry=registry)
        self.loop_lag_seconds = Gauge(
            "dsd_event_loop_lag_seconds", "Lag of the event loop, last measurement", registry=registry
        )


class TraceMetrics:
    """Spans of traces, where these are on."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.spans = Counter("dsd_trace_spans", "Spans of traces, by how far they came", ["stage"], registry=registry)
