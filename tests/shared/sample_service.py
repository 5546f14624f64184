"""A service for test_service.py, run as its own process. Its settings choose what goes wrong."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Literal

import structlog
from aiohttp import web
from pydantic import Field

from shared import service as runtime
from shared.protocol import subjects
from shared.runtime.config import ServiceSettings, load

log = structlog.get_logger(__name__)


class SampleSettings(ServiceSettings):
    """Sample service."""

    name: str = Field("sample", description="Name of this instance")
    fault: Literal[
        "none",
        "loading",
        "loading fails",
        "run fails",
        "run ends",
        "drain hangs",
        "drain fails",
        "thread hangs",
        "deaf",
    ] = Field("none", description="What goes wrong")


class Sample:
    """One session is open until POST /end."""

    def __init__(self, context: runtime.Context, settings: SampleSettings) -> None:
        self._context = context
        self._fault = settings.fault
        self.over = asyncio.Event()

    async def run(self) -> None:
        inbox = "forbidden" if self._fault == "deaf" else subjects.inbox("gateway", self._context.instance_id)
        await self._context.bus.subscribe(inbox, lambda subject, message: None)
        log.debug("subscribed", session="abc")
        log.info("serving", session="abc")
        if self._fault == "run fails":
            secret_prompt = "do not log me"
            raise RuntimeError(f"run failed on {len(secret_prompt)} characters")
        if self._fault == "run ends":
            return
        if self._fault == "thread hangs":
            await asyncio.to_thread(threading.Event().wait)
        await asyncio.Event().wait()

    async def drain(self) -> None:
        if self._fault == "drain fails":
            raise RuntimeError("drain failed")
        if self._fault == "drain hangs":
            await asyncio.Event().wait()
        if self._fault != "thread hangs":
            await self.over.wait()


def main() -> None:
    settings = load(SampleSettings, sys.argv[1:], "sample")
    runtime.END_S = 1.0
    app = web.Application()
    samples: list[Sample] = []

    async def end(request: web.Request) -> web.Response:
        samples[0].over.set()
        return web.Response()

    async def start(context: runtime.Context) -> Sample:
        if settings.fault == "loading":
            await asyncio.Event().wait()
        if settings.fault == "loading fails":
            raise FileNotFoundError("no model here")
        samples.append(Sample(context, settings))
        return samples[0]

    app.router.add_post("/end", end)
    runtime.run_service("gateway", settings, start, app)


if __name__ == "__main__":
    main()
