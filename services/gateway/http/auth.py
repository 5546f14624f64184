"""Who asks: the middleware that lets nobody without a key to the API, where keys are set.

Invariant: every path needs a key but those named here; handlers learn the key's name and limits, nobody the key.
"""

from __future__ import annotations

from contextvars import ContextVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.gateway.admission.api_keys import ANYBODY, ApiKey, BadKeyFile, KeyFile
from services.gateway.errors import ApiError
from services.gateway.http.streaming import error_response
from services.gateway.metrics import GatewayMetrics

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})
_asking: ContextVar[ApiKey] = ContextVar("asking")  # set while a handler runs, in its task

log = structlog.get_logger(__name__)


def asking_key() -> ApiKey:
    """The key that the request being handled came with."""
    return _asking.get()


class Door:
    """Looks at keys; `keys` None: open to all."""

    def __init__(self, keys: KeyFile | None) -> None:
        self._keys = keys
        self._metrics: GatewayMetrics | None = None

    def open(self, metrics: GatewayMetrics) -> None:
        """From now on it counts what it does."""
        self._metrics = metrics
        metrics.keys.set(len(self._keys.ring) if self._keys else 0)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers 401, or gives the request its key."""
        if request.path in OPEN_PATHS:
            return await handler(request)
        key = self._find(request)
        if key is None:
            return self._refuse()
        token = _asking.set(key)
        try:
            with structlog.contextvars.bound_contextvars(**({"key": key.name} if key.name else {})):
                return await handler(request)
        finally:
            _asking.reset(token)

    async def reload(self) -> None:
        """Takes a changed file of keys; one that can't be taken leaves the keys as they are."""
        if self._keys is None or self._metrics is None:
            return
        known = self._keys.ring.names
        try:
            if not await self._keys.reload():
                return
        except BadKeyFile as error:
            self._metrics.key_reloads.labels("refused").inc()
            log.error("keys not taken, the old ones stay", file=str(self._keys.path), why=str(error))
            return
        self._metrics.key_reloads.labels("taken").inc()
        self._metrics.keys.set(len(self._keys.ring))
        self._metrics.forget_keys(known - self._keys.ring.names)
        log.info("keys taken", file=str(self._keys.path), num_keys=len(self._keys.ring))

    def _find(self, request: web.Request) -> ApiKey | None:
        if self._keys is None:
            return ANYBODY
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        return self._keys.ring.find(presented.strip()) if scheme.lower() == "bearer" else None

    def _refuse(self) -> web.Response:
        if self._metrics is not None:
            self._metrics.refused.labels("invalid_api_key").inc()
        message = "A valid API key is needed: Authorization: Bearer <key>"
        return error_response(ApiError(401, message, code="invalid_api_key"))
