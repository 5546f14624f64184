"""The middleware that authenticates requests by their API key, where keys are configured.

Invariant: every path needs a key, except the open ones. Handlers get the key's name and limits, never the key itself.
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

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/health", "/metrics", "/openapi.json"})
_current: ContextVar[ApiKey] = ContextVar("current")  # set while a handler runs, in its task

log = structlog.get_logger(__name__)


def current_key() -> ApiKey:
    """The key of the request that this task handles."""
    return _current.get()


class Authenticator:
    """Checks keys against a file; `keys` None: every request passes. more_open: paths that need no key either."""

    def __init__(self, keys: KeyFile | None, more_open: frozenset[str] = frozenset()) -> None:
        self._keys = keys
        self._open_paths = OPEN_PATHS | more_open
        self._metrics: GatewayMetrics | None = None

    def open(self, metrics: GatewayMetrics) -> None:
        """Counts in these metrics from now on."""
        self._metrics = metrics
        metrics.keys.set(len(self._keys.ring) if self._keys else 0)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers 401 to a request without a valid key; makes the key available to the handler of any other."""
        if request.path in self._open_paths:
            return await handler(request)
        key = self._find(request)
        if key is None:
            return self._refuse()
        token = _current.set(key)
        try:
            with structlog.contextvars.bound_contextvars(**({"key": key.name} if key.name else {})):
                return await handler(request)
        finally:
            _current.reset(token)

    async def reload(self) -> None:
        """Reads the key file again if it has changed. An invalid file is logged and counted, and the keys stay."""
        if self._keys is None or self._metrics is None:
            return
        old_names = self._keys.ring.names
        try:
            if not await self._keys.reload():
                return
        except BadKeyFile as error:
            self._metrics.key_reloads.labels("refused").inc()
            log.error("key file refused, the old keys stay", file=str(self._keys.path), why=str(error))
            return
        self._metrics.key_reloads.labels("taken").inc()
        self._metrics.keys.set(len(self._keys.ring))
        self._metrics.forget_keys(old_names - self._keys.ring.names)
        log.info("key file taken", file=str(self._keys.path), num_keys=len(self._keys.ring))

    def _find(self, request: web.Request) -> ApiKey | None:
        if self._keys is None:
            return ANYBODY
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        return self._keys.ring.find(presented.strip()) if scheme.lower() == "bearer" else None

    def _refuse(self) -> web.Response:
        if self._metrics is not None:
            self._metrics.refused.labels("invalid_api_key").inc()
        message = "No valid API key: send the header Authorization: Bearer <key>"
        return error_response(ApiError(401, message, code="invalid_api_key"))
