"""The configuration read again while the controller runs.

Invariant: what comes out was checked as a whole; a configuration that can't be used is logged, and nothing comes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.window_controller.settings import ControllerSettings
from shared.runtime.config import BadSettings

log = structlog.get_logger(__name__)


class Reloads:
    """Reads settings as at the start (`read` raises BadSettings) whenever it is asked to."""

    def __init__(self, read: Callable[[], ControllerSettings]) -> None:
        self._read = read
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """The configuration may have changed."""
        self._asked.set()

    async def next(self) -> ControllerSettings:
        """The next configuration that can be used."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                return await asyncio.to_thread(self._read)
            except BadSettings as error:
                log.error("configuration not taken, the old one stays", why=str(error))
