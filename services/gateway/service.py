"""A gateway: HTTP in, sessions over the bus, answers out (docs/api.md, docs/protocol.md).

Invariant: readiness says whether a request would find a verifier. No session outlives the gateway's work.
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
from services.gateway.admission.gate import AdmissionGate
from services.gateway.admission.slots import AdmissionSlots
from services.gateway.fleet.missing import MissingPeers
from services.gateway.fleet.peers import KNOWN, PeerFleet
from services.gateway.formats.registry import AnswerFormats, choose_formats
from services.gateway.http.auth import Authenticator
from services.gateway.http.endpoints.console import CONSOLE_PATHS, ConsolePage
from services.gateway.http.endpoints.joining import Joining
from services.gateway.http.request_builder import RequestBuilder
from services.gateway.http.routes import Routes, make_app
from services.gateway.inspector.recent import RecentRequests
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import Sessions
from services.gateway.session.placement import Placement
from services.gateway.settings import GatewaySettings
from services.gateway.text.tokenizer import TargetTokenizer, load_tokenizer
from shared.bus.bus import Absent
from shared.grammar.grammars import Grammars
from shared.policies.routing import ROUTERS
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Message, WindowDecision
from shared.service import Context, Start, run_service

ABORT_S = 2.0  # for the requests of aborted sessions to send their errors

log = structlog.get_logger(__name__)

LoadTokenizer: TypeAlias = Callable[[Path], TargetTokenizer]


def run(settings: GatewaySettings, load_tokenizer: LoadTokenizer = load_tokenizer) -> None:
    """Runs a gateway process to its end. Tests and benchmarks may pass a `load_tokenizer` of their own."""
    start, app = prepare(settings, load_tokenizer)
    run_service("gateway", settings, start, app)


def prepare(settings: GatewaySettings, load_tokenizer: LoadTokenizer = load_tokenizer) -> tuple[Start, web.Application]:
    """What shared/service.py runs: the start of the gateway, and its HTTP application."""
    routes, authenticator = make_routes(settings), make_authenticator(settings)

    async def start(context: Context) -> Gateway:
        tokenizer = await asyncio.to_thread(load_tokenizer, Path(settings.target))
        formats = await asyncio.to_thread(formats_of, settings, tokenizer)
        return Gateway(settings, context, tokenizer, formats, routes, authenticator)

    return start, make_app(routes, authenticator, settings.max_body_bytes)


def formats_of(settings: GatewaySettings, tokenizer: TargetTokenizer) -> AnswerFormats:
    """Slow where a library has to load its vocabulary. Raises FormatUnavailable."""
    return choose_formats(settings.tool_parser, settings.reasoning_parser, tokenizer.template)


def make_routes(settings: GatewaySettings) -> Routes:
    """The endpoints, not open yet."""
    console = ConsolePage(bool(settings.api_keys_file), settings.inspector) if settings.console else None
    ignores_unknown = settings.unknown_fields == "ignore"
    return Routes(settings.client_timeout_s, Joining(settings), console, ignores_unknown=ignores_unknown)


def make_authenticator(settings: GatewaySettings) -> Authenticator:
    """Authenticates by the configured key file; lets everyone pass if there is none."""
    keys = KeyFile(Path(settings.api_keys_file)) if settings.api_keys_file else None
    return Authenticator(keys, CONSOLE_PATHS if settings.console else frozenset())


class Gateway:
    """One gateway on one bus (a `Work` of shared/service.py)."""

    def __init__(
        self,
        settings: GatewaySettings,
        context: Context,
        tokenizer: TargetTokenizer,
        formats: AnswerFormats,
        routes: Routes,
        authenticator: Authenticator,
    ) -> None:
        self._settings = settings
        self._context = context
        self._routes = routes
        self._authenticator = authenticator
        self._metrics = GatewayMetrics(context.registry)
        self._metrics.connections.set_function(context.num_connections)
        placement = Placement(
            PeerFleet(settings.instances_per_name),
            ROUTERS[settings.verifier_routing](),
            ROUTERS[settings.drafter_routing](),
            random.Random(),
        )
        self.sessions = Sessions(
            context.instance_id,
            context.bus,
            placement,
            settings.timing,
            settings.max_sessions,
            self._metrics,
            RecentRequests() if settings.inspector else None,
        )
        slots = AdmissionSlots(settings.max_sessions, settings.max_queue)
        self.gate = AdmissionGate(slots, settings.queue_timeout_s, settings.request_timeout_s, self._metrics)
        grammars = Grammars(Path(settings.target))
        self._builder = RequestBuilder(
            settings.model_name, settings.default_max_tokens, tokenizer, grammars, placement, formats
        )
        self._num_peers = dict.fromkeys(KNOWN, -1)
        self._missing = MissingPeers()
        self._is_ready = False
        self._draining = False
        self._update_readiness()

    async def run(self) -> None:
        bus = self._context.bus
        await bus.subscribe(subjects.inbox("gateway", self._context.instance_id), self.sessions.on_message)
        self._authenticator.open(self._metrics)
        self._routes.open(self.sessions, self._builder, self.gate, self._metrics, self._context.tracing)
        for service in KNOWN:
            await bus.subscribe(subjects.all_broadcasts(Heartbeat, service), self._on_heartbeat)
        await bus.subscribe(subjects.all_said("drafter", WindowDecision), self.sessions.on_decision)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send_heartbeats(), name="heartbeat")
                tasks.create_task(self._watch_keys(), name="keys")
        finally:
            self._routes.close("the gateway has stopped")
            await self._abort_sessions()

    async def drain(self) -> None:
        """Refuses new requests, and waits for those under way and in the queue."""
        self._draining = True
        self._routes.close("the gateway is shutting down")
        await self.gate.slots.wait_idle()
        await self._routes.settled()

    async def _send_heartbeats(self) -> None:
        while True:
            await self.sessions.send_heartbeat(
                self._settings.heartbeat_s, [self._settings.model_name], draining=self._draining
            )
            self._update_readiness()
            self._count_peers()
            self._count_lost()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _watch_keys(self) -> None:
        """In a task of its own, so that no heartbeat waits for a slow disk."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            await self._authenticator.reload()

    async def _abort_sessions(self) -> None:
        """Fails the requests under way and in the queue, and closes their sessions at the peers."""
        self.gate.slots.close()
        self.sessions.abort("the gateway is shutting down")
        try:
            async with asyncio.timeout(ABORT_S):
                await self.gate.slots.wait_idle()
        except TimeoutError:
            log.warning("sessions left behind", num_sessions=len(self.sessions))

    def _on_heartbeat(self, subject: str, message: Message | Absent) -> None:
        self.sessions.on_heartbeat(subject, message)
        self._count_peers()
        # Of the heartbeats only that of a verifier that drains may end readiness.
        match message:
            case Heartbeat(service="verifier") if message.draining or not self._is_ready:
                self._update_readiness()

    def _update_readiness(self) -> None:
        fleet, name = self.sessions.fleet, self._settings.model_name
        self._is_ready = fleet.max_context(name, time.monotonic()) > 0
        self._context.health.lack("" if self._is_ready else f"no verifier serves {name}")

    def _count_lost(self) -> None:
        fleet = self.sessions.fleet
        lost = fleet.take_lost()
        self._metrics.count_lost(lost)
        self._metrics.show_missing(self._missing.update(lost, fleet.knows, time.monotonic()))

    def _count_peers(self) -> None:
        for service, num in self._num_peers.items():
            if num != (now := self.sessions.fleet.count(service)):
                self._num_peers[service] = now
                self._metrics.peers.labels(service).set(now)
