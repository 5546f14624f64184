"""A gateway: HTTP in, sessions over the bus, answers out (docs/api.md, docs/protocol.md).

Invariant: readiness says whether a request would find a verifier; no session outlives the gateway's work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import structlog
from aiohttp import web

from services.gateway.admission.api_keys import KeyFile
from services.gateway.admission.gate import Entry
from services.gateway.admission.slots import Places
from services.gateway.fleet.peers import Fleet
from services.gateway.http.auth import Door
from services.gateway.http.request_builder import Admission
from services.gateway.http.routes import Routes, make_app
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import Sessions
from services.gateway.session.placement import Placement
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import TargetTokenizer, load_tokenizer
from shared.bus.bus import Absent
from shared.policies.routing import ROUTERS
from shared.protocol import subjects
from shared.protocol.messages import Message
from shared.service import Context, Start, run_service

ABORT_S = 2.0  # what owners of aborted sessions get to tell their clients

log = structlog.get_logger(__name__)

LoadTokenizer: TypeAlias = Callable[[Path], TargetTokenizer]


def run(settings: GatewaySettings, load_tokenizer: LoadTokenizer = load_tokenizer) -> None:
    """Runs a gateway process to its end; `load_tokenizer` is where a stand-in may enter."""
    start, app = prepare(settings, load_tokenizer)
    run_service("gateway", settings, start, app)


def prepare(settings: GatewaySettings, load_tokenizer: LoadTokenizer = load_tokenizer) -> tuple[Start, web.Application]:
    """What shared/service.py runs: how the gateway starts, and its HTTP application."""
    routes, door = Routes(settings.client_timeout_s), the_door(settings)

    async def start(context: Context) -> Gateway:
        tokenizer = await asyncio.to_thread(load_tokenizer, Path(settings.target))
        return Gateway(settings, context, tokenizer, routes, door)

    return start, make_app(routes, door, settings.max_body_bytes)


def the_door(settings: GatewaySettings) -> Door:
    """With the keys that the settings name."""
    return Door(KeyFile(Path(settings.api_keys_file)) if settings.api_keys_file else None)


class Gateway:
    """One gateway on one bus (a `Work` of shared/service.py)."""

    def __init__(
        self, settings: GatewaySettings, context: Context, tokenizer: TargetTokenizer, routes: Routes, door: Door
    ) -> None:
        self._settings = settings
        self._context = context
        self._routes = routes
        self._door = door
        self._metrics = GatewayMetrics(context.registry)
        placement = Placement(
            Fleet(), ROUTERS[settings.verifier_routing](), ROUTERS[settings.drafter_routing](), random.Random()
        )
        self.sessions = Sessions(
            context.instance_id, context.bus, placement, settings.timing, settings.max_sessions, self._metrics
        )
        places = Places(settings.max_sessions, settings.max_queue)
        self.entry = Entry(places, settings.queue_timeout_s, settings.request_timeout_s, self._metrics)
        self._admission = Admission(settings.model_name, settings.default_max_tokens, tokenizer, placement)
        self._draining = False
        self._tell_readiness()

    async def run(self) -> None:
        bus = self._context.bus
        await bus.subscribe(subjects.inbox("gateway", self._context.instance_id), self.sessions.on_message)
        self._door.open(self._metrics)
        self._routes.open(self.sessions, self._admission, self.entry, self._metrics)
        await bus.subscribe(subjects.all_broadcasts("heartbeat"), self._on_heartbeat)
        await bus.subscribe(subjects.all_said("drafter", "window"), self.sessions.on_decision)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(), name="heartbeat")
                tasks.create_task(self._watch_keys(), name="keys")
        finally:
            self._routes.close("the gateway has stopped")
            await self._abort_sessions()

    async def drain(self) -> None:
        """Requests in line are served too."""
        self._draining = True
        self._routes.close("the gateway is shutting down")
        await self.entry.places.wait_idle()

    async def _beat(self) -> None:
        while True:
            await self.sessions.beat(self._settings.heartbeat_s, [self._settings.model_name], draining=self._draining)
            self._tell_readiness()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _watch_keys(self) -> None:
        """Apart from the heartbeat, which must not wait for a slow disk."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            await self._door.reload()

    async def _abort_sessions(self) -> None:
        """Lets the clients of answers still under way know, those in line, and the peers."""
        self.entry.places.close()
        self.sessions.abort("the gateway is shutting down")
        try:
            async with asyncio.timeout(ABORT_S):
                await self.entry.places.wait_idle()
        except TimeoutError:
            log.warning("sessions left behind", num_sessions=len(self.sessions))

    def _on_heartbeat(self, subject: str, message: Message | Absent) -> None:
        self.sessions.on_heartbeat(subject, message)
        self._tell_readiness()

    def _tell_readiness(self) -> None:
        now, fleet, name = time.monotonic(), self.sessions.fleet, self._settings.model_name
        self._metrics.peers.labels("verifier").set(fleet.count_alive("verifier", now))
        self._metrics.peers.labels("drafter").set(fleet.count_alive("drafter", now))
        self._context.health.lack("" if fleet.max_context(name, now) else f"no verifier serves {name}")
