"""Prometheus metrics that every service has; a registry per instance, so that several can live in one process.

Invariant: names start with dsd_ and end in their unit; labels come from small closed sets, never from an id or from
what a peer sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge


def by_kind(counter: Counter) -> Callable[[type], Counter]:
    """Of a counter labelled by classes' names, the child of a class; looked up once, as that takes longer than to
    decode a message."""
    return cache(lambda kind: counter.labels(kind.__name__))


class BusMetrics:
    """What one member of the bus said, heard and lost; message labels are the names of the message classes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter("dsd_bus_published", "Messages published", ["message"], registry=registry)
        self.published_as = by_kind(self.published)
        self.received = Counter("dsd_bus_received", "Messages delivered to handlers", ["message"], registry=registry)
        self.received_as = by_kind(self.received)
        self.dropped = Counter(
            "dsd_bus_dropped",
            "Messages lost here: malformed, incomplete, handler failed, not connected, outbound full, slow consumer",
            ["reason"],
            registry=registry,
        )
        self.dropped.labels("incomplete")  # there before the first, so that rates see that one, too
        self.errors = Counter(
            "dsd_bus_errors",
            "Errors told by the client or server: connection, permission violation, slow consumer",
            ["kind"],
            registry=registry,
        )
        self.reconnects = Counter("dsd_bus_reconnects", "Times the connection came back", registry=registry)


class ProcessMetrics:
    """What every process tells about itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("dsd_ready", "1 when the service can work", registry=registry)
        self.loop_lag_seconds = Gauge(
            "dsd_event_loop_lag_seconds", "How late the event loop last was", registry=registry
        )
