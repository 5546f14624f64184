"""Structured logs on stderr: one JSON object a line, or readable lines on a terminal.

Invariant: every line has service and instance; code that works on one session adds session=<id>. Tracebacks are logged
without local variables, which would show prompts and secrets.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from shared.runtime.config import ServiceSettings


class _OfClients(logging.Filter):
    """Drops aiohttp's tracebacks about requests that are no HTTP: any client could fill the log with them."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | RequestPayloadError)


OF_CLIENTS = _OfClients()


def set_up(settings: ServiceSettings, service: str, instance_id: str) -> None:
    """Configures structlog and the standard library's logging in this process."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    identity = {"service": service, "instance": instance_id}  # no context variable: model threads log too
    steps: list[Any] = [
        lambda _logger, _method, event: identity | event,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: Any
    if console:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        steps.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*steps, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=steps, processor=renderer)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.getLogger("aiohttp.server").addFilter(OF_CLIENTS)
