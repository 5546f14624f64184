"""What the services themselves say: their settings, the paths they serve, the metrics they expose."""

from __future__ import annotations

import functools

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.settings import DrafterSettings
from services.gateway.metrics import GatewayMetrics
from services.gateway.settings import GatewaySettings
from services.window_controller.metrics import ControllerMetrics
from services.window_controller.settings import ControllerSettings
from shared.runtime.config import ServiceSettings
from shared.runtime.health import Health
from shared.runtime.metrics import BusMetrics

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "window_controller": ControllerSettings,
    "cloud_verifier": VerifierSettings,
    "edge_drafter": DrafterSettings,
}
METRICS = {
    "gateway": GatewayMetrics,
    "window_controller": ControllerMetrics,
    "cloud_verifier": VerifierMetrics,
    "edge_drafter": DrafterMetrics,
}


@functools.cache
def served_paths() -> set[str]:
    """What every service answers beside its own API."""
    app = web.Application()
    Health(CollectorRegistry()).add_routes(app)
    return {resource.canonical for resource in app.router.resources()}


@functools.cache
def metrics_of(service: str) -> set[str]:
    """The names of all metrics in a service's /metrics, as Prometheus stores them."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Health(registry)
    BusMetrics(registry)
    METRICS[service](registry)
    return metrics_in(generate_latest(registry).decode())


def metrics_in(text: str) -> set[str]:
    """What Prometheus stores of an answer of /metrics."""
    names = set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            names |= {name + suffix for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return names
