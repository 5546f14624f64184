"""The life of a service process: logs, health endpoints, bus, work, drain, end.

Invariant: the health endpoints are up before anything slow starts, and every task has an owner. SIGTERM and SIGINT give
open sessions at most `drain_s` to finish, then the process ends with status 0. A crash ends it with status 1 and a
traceback. Neither waits for a thread that hangs. SIGHUP ends a process at once, unless its service handles it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector

from shared.bus import nats_bus
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Service
from shared.runtime import logs
from shared.runtime.config import BadSettings, ServiceSettings
from shared.runtime.health import Health
from shared.runtime.metrics import BusMetrics
from shared.runtime.tracing import NO_TRACING, Tracing, tracing_of

END_S = 5.0  # to close bus, HTTP and threads after work has ended
HTTP_END_S = 2.0  # of that, for open HTTP requests

log = structlog.get_logger(__name__)


class Work(Protocol):
    """The work of a service that has started."""

    async def run(self) -> None:
        """Serves until cancelled."""
        ...

    async def drain(self) -> None:
        """Takes nothing new; returns when all open sessions are over. `run` goes on meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a service gets at its start. num_connections: counts the open HTTP connections."""

    instance_id: str
    bus: Bus
    registry: CollectorRegistry
    health: Health
    tracing: Tracing = NO_TRACING
    num_connections: Callable[[], int] = lambda: 0


Start: TypeAlias = Callable[[Context], Coroutine[None, None, Work]]
Outcome = TypeVar("Outcome")


def run_service(
    service: Service,
    settings: ServiceSettings,
    start: Start,
    app: web.Application | None = None,
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Runs a service to its end. Exits with status 1 after a crash, with 2 if OpenTelemetry can't be set up.

    start: makes the work, and may load a model in a thread. app: routes beside the health endpoints. on_hangup: called
    in the event loop on SIGHUP.
    """
    instance_id = subjects.new_instance_id(settings.name)
    logs.set_up(settings, service, instance_id)
    try:
        tracing = tracing_of(service, instance_id)
    except BadSettings as error:
        print(f"{service}: {error}", file=sys.stderr)
        sys.exit(2)
    life = _live_until_signalled(instance_id, settings, start, app or web.Application(), tracing, on_hangup)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(life)
            _exit_after(END_S, 0)
    except Exception as error:
        _exit_after(END_S, 1)
        log.error("service failed", exc_info=_sole(error))
        sys.exit(1)
    finally:
        tracing.close()


async def live(
    instance_id: str,
    settings: ServiceSettings,
    start: Start,
    stop: asyncio.Event,
    app: web.Application,
    tracing: Tracing = NO_TRACING,
) -> None:
    """Runs a service inside a running loop, until `stop` is set and its sessions are over. A crash raises."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    tracing.register(registry)
    health = Health(registry)
    health.add_routes(app)
    async with _serving_http(app, settings) as num_connections, asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(health.watch_loop(), name="loop-lag")
        health.become("connecting to NATS")
        connect = nats_bus.connect(settings, instance_id, BusMetrics(registry), health.connected)
        bus = await _unless(stop, connect)
        if bus is not None:
            try:
                context = Context(instance_id, bus, registry, health, tracing, num_connections)
                await _work(context, bus, settings.drain_s, start, stop)
            finally:
                health.become("stopping")
                await bus.close()
        watch.cancel()
    log.info("stopped")


async def _live_until_signalled(
    instance_id: str,
    settings: ServiceSettings,
    start: Start,
    app: web.Application,
    tracing: Tracing,
    on_hangup: Callable[[], None] | None,
) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("second signal, ending without draining")
            _exit_after(0, 1)
        stop.set()
        _exit_after(settings.drain_s + END_S, 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        _handle(number, on_signal)
    if on_hangup is not None and hasattr(signal, "SIGHUP"):
        _handle(signal.SIGHUP, on_hangup)
    await live(instance_id, settings, start, stop, app, tracing)


def _handle(number: signal.Signals, handler: Callable[[], None]) -> None:
    """Calls the handler in the running loop on each such signal. Loops on Windows leave signals to Python."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, handler)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))


async def _work(context: Context, bus: nats_bus.NatsBus, drain_s: float, start: Start, stop: asyncio.Event) -> None:
    context.health.become("loading")
    log.info("loading")
    work = await _unless(stop, start(context))
    if work is None:
        return
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(work.run(), name="work")
        lost = tasks.create_task(bus.lost(), name="bus-lost")
        context.health.become("")
        log.info("ready")
        await _unless(stop, asyncio.wait({running}))
        if not running.done():
            context.health.become("draining")
            await _drain(work, drain_s)
        running.cancel()
        lost.cancel()


async def _drain(work: Work, drain_s: float) -> None:
    log.info("draining", at_most_s=drain_s)
    try:
        async with asyncio.timeout(drain_s):
            await work.drain()
    except TimeoutError:
        log.warning("drain deadline passed; open sessions are abandoned")


async def _unless(stop: asyncio.Event, step: Coroutine[None, None, Outcome]) -> Outcome | None:
    """The result of `step`, or None if `stop` is set first: then the step is cancelled."""
    async with asyncio.TaskGroup() as tasks:
        done = tasks.create_task(step)
        stopping = tasks.create_task(stop.wait())
        await asyncio.wait({done, stopping}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        stopping.cancel()
    return None if done.cancelled() else done.result()


@asynccontextmanager
async def _serving_http(app: web.Application, settings: ServiceSettings) -> AsyncIterator[Callable[[], int]]:
    """Serves during the block, which gets the count of open connections."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=HTTP_END_S,
        handler_cancellation=True,
        keepalive_timeout=settings.http_keepalive_s,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        host, port = runner.addresses[0][:2]
        named = f"[{host}]" if ":" in host else host  # IPv6
        log.info("http endpoints up", url=f"http://{named}:{port}")
        yield lambda: len(runner.server.connections) if runner.server is not None else 0
    finally:
        await runner.cleanup()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _sole(error: BaseException) -> BaseException:
    """The error itself, without the groups around it if it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _exit_after(seconds: float, status: int) -> None:
    """Ends the process after `seconds` if it still runs: a thread inside a model can't be cancelled."""

    def end() -> None:
        if seconds:
            log.warning("did not end in time, exiting", after_s=seconds)
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
