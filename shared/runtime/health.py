"""The health endpoints of a service: /healthz, /readyz, /metrics; /health is /readyz under the name that others use.

Invariant: they answer before the bus is connected or a model is loaded. /healthz says that the event loop runs, /readyz
whether the service is ready, and if not, why.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from shared.runtime.metrics import ProcessMetrics

LAG_INTERVAL_S = 1.0


class Health:
    """Whether a service is ready."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics = ProcessMetrics(registry)
        self._registry = registry
        self._stage = "starting"
        self._is_connected = True
        self._missing = ""

    @property
    def reason(self) -> str:
        """Why the service is not ready; "" if it is."""
        return self._stage or ("" if self._is_connected else "not connected to NATS") or self._missing

    def become(self, stage: str) -> None:
        """Sets the stage that keeps the service from being ready; "": none."""
        self._stage = stage
        self._metrics.ready.set(not self.reason)

    def connected(self, is_connected: bool) -> None:
        """Takes note that the bus connected or disconnected."""
        self._is_connected = is_connected
        self._metrics.connected.set(is_connected)
        self._metrics.ready.set(not self.reason)

    def lack(self, missing: str) -> None:
        """Sets what the service waits for from others; "": nothing. It stays across stages."""
        self._missing = missing
        self._metrics.ready.set(not self.reason)

    async def watch_loop(self) -> None:
        """Measures the lag of the event loop until cancelled."""
        while True:
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self._metrics.loop_lag_seconds.set(max(0.0, time.monotonic() - due))

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/healthz", self._healthz)
        for path in ("/readyz", "/health"):  # clients of vLLM and llama.cpp ask for the latter before they begin
            app.router.add_get(path, self._readyz)
        app.router.add_get("/metrics", self._metricsz)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.reason:
            return web.Response(status=503, text=f"not ready: {self.reason}\n")
        return web.Response(text="ready\n")

    async def _metricsz(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
