"""Reloads of the configuration while the controller runs.

Invariant: only valid configurations come out; an invalid one is logged and skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.window_controller.settings import ControllerSettings
from shared.runtime.config import BadSettings

log = structlog.get_logger(__name__)


class Reloads:
    """Reads settings as at the start, on request. `read` raises BadSettings for invalid ones."""

    def __init__(self, read: Callable[[], ControllerSettings]) -> None:
        self._read = read
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def next(self) -> ControllerSettings:
        """The next valid configuration."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                return await asyncio.to_thread(self._read)
            except BadSettings as error:
                log.error("configuration not taken, the old one stays", why=str(error))
