"""The window controller on the bus: reports and heartbeats in, decisions and its own heartbeat out.

Invariant: handlers only validate and enqueue. One loop observes, decides and announces; no report ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec
import structlog

from services.window_controller.metrics import ControllerMetrics
from services.window_controller.pairs import DropReason, PairController, PairId
from services.window_controller.reloads import Reloads
from services.window_controller.report_limits import ReportLimits
from services.window_controller.settings import ControllerSettings
from services.window_controller.verifiers import LiveVerifiers
from shared.bus.bus import Absent, Bus
from shared.protocol.messages import Heartbeat, Load, Message, Report, WindowDecision
from shared.protocol.subjects import all_broadcasts, broadcast, fits, inbox, instance_name, to
from shared.service import Context, run_service

log = structlog.get_logger(__name__)

DECIDED_AT_ONCE = 256  # pairs of one decision step, which blocks the loop for some milliseconds
GATHER_S = 0.02  # a report waits for others to be decided on together
PUBLISHED_AT_ONCE = 64  # decisions between two yields to other tasks


def run(settings: ControllerSettings, read_again: Callable[[], ControllerSettings]) -> None:
    """Runs a controller until SIGTERM or SIGINT. SIGHUP reloads its configuration."""
    reloads = Reloads(read_again)
    run_service(
        "controller",
        settings,
        lambda context: WindowController.start(settings, context, reloads),
        on_hangup=reloads.ask,
    )


class WindowController:
    """One controller (a `Work` of shared/service.py)."""

    def __init__(
        self, settings: ControllerSettings, instance_id: str, bus: Bus, metrics: ControllerMetrics, reloads: Reloads
    ) -> None:
        self._settings = settings
        self._instance_id = instance_id
        self._bus = bus
        self._metrics = metrics
        self._reloads = reloads
        self._draining = False
        self._reports: asyncio.Queue[Report] = asyncio.Queue(settings.max_waiting)
        self._limits = ReportLimits(settings.instances_per_name)
        self._verifiers = LiveVerifiers(settings.max_verifiers, settings.instances_per_name)
        self._pairs = PairController(
            settings.make_policy(),
            self._verifiers,
            self._drop,
            _log,
            self._fail,
            max_pairs=settings.max_pairs,
            expiry_s=settings.pair_expiry_s,
            announce_s=settings.announce_s,
            instances_per_name=settings.instances_per_name,
            controller_id=instance_id,
        )

    @classmethod
    async def start(cls, settings: ControllerSettings, context: Context, reloads: Reloads) -> WindowController:
        """Subscribes to the reports of its drafters and the heartbeats of verifiers."""
        controller = cls(settings, context.instance_id, context.bus, ControllerMetrics(context.registry), reloads)
        await context.bus.subscribe(all_broadcasts(Heartbeat, "verifier"), controller._receive)
        await context.bus.subscribe(inbox("controller", context.instance_id), controller._receive)
        return controller

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._control(), name="control")
            tasks.create_task(self._refresh(), name="refresh")
            tasks.create_task(self._send_heartbeats(), name="heartbeat")
            tasks.create_task(self._reload(), name="reload")

    async def drain(self) -> None:
        """Announces the end in a heartbeat, so that drafters follow another controller. No session needs to finish."""
        self._draining = True
        await self._send_heartbeat()

    async def _control(self) -> NoReturn:
        """Observe → decide → announce."""
        while True:
            first = await self._reports.get()
            await asyncio.sleep(GATHER_S)
            reports = self._with_waiting([first])
            while reports:
                await self._announce(self._observe(reports))
                await asyncio.sleep(0)  # other tasks run between batches
                reports = self._with_waiting([])

    def _observe(self, reports: list[Report]) -> list[WindowDecision]:
        self._metrics.reports.inc(len(reports))
        try:
            return self._pairs.observe(reports, time.monotonic())
        except Exception:  # the decisions in force stay
            self._metrics.failed.inc()
            log.exception("no decision on reports", drafter_ids=[report.drafter_id for report in reports])
            return []

    def _with_waiting(self, reports: list[Report]) -> list[Report]:
        """Adds queued reports until there are DECIDED_AT_ONCE pairs or more."""
        num_pairs = sum(len(report.pairs) for report in reports)
        while num_pairs < DECIDED_AT_ONCE and not self._reports.empty():
            reports.append(self._reports.get_nowait())
            num_pairs += len(reports[-1].pairs)
        return reports

    async def _announce(self, decisions: list[WindowDecision]) -> None:
        for number, decision in enumerate(decisions, 1):
            self._metrics.window.observe(decision.window)
            await self._bus.publish(to("drafter", decision.drafter_id, WindowDecision, self._instance_id), decision)
            if number % PUBLISHED_AT_ONCE == 0:
                await asyncio.sleep(0)  # publish() itself does not yield

    async def _refresh(self) -> NoReturn:
        """Repeats decisions, since core NATS may lose one, and removes silent pairs and verifiers."""
        while True:
            now = time.monotonic()
            self._limits.expire(now)
            self._verifiers.expire(now)
            self._pairs.expire(now)
            self._metrics.verifiers.set(len(self._verifiers))
            self._metrics.pairs.set(len(self._pairs))
            self._metrics.led_pairs.set(self._pairs.num_led)
            await self._announce(self._pairs.refresh(now))
            await asyncio.sleep(self._settings.announce_s)

    async def _send_heartbeats(self) -> NoReturn:
        while True:
            await self._send_heartbeat()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _reload(self) -> NoReturn:
        """Applies a new policy or start at once; pairs and sessions continue."""
        while True:
            wanted, running = await self._reloads.next(), self._settings
            self._settings = running.steered_by(wanted)
            if wanted.steering != running.steering:
                self._pairs.follow(wanted.make_policy())
            log.info("configuration taken", **wanted.steering)
            if pending := self._settings.differing(wanted):
                log.warning("settings that have changed and need a restart", names=pending)

    async def _send_heartbeat(self) -> None:
        heartbeat = Heartbeat(
            service="controller",
            instance_id=self._instance_id,
            interval_s=self._settings.heartbeat_s,
            models=[],
            max_context=0,
            vocab_size=0,
            fingerprint="",
            load=Load(),
            draining=self._draining,
        )
        await self._bus.publish(broadcast(Heartbeat, "controller", self._instance_id), heartbeat)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Absent) or not fits(subject, message):
            self._drop("foreign")
            return
        match message:
            case Report():
                self._on_report(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case _:
                self._drop("foreign")

    def _on_report(self, report: Report) -> None:
        if not self._limits.take(instance_name(report.drafter_id), time.monotonic()):
            self._drop("frequent")
            return
        if self._pairs.passes_over(report, time.monotonic()):
            return
        try:
            self._reports.put_nowait(report)
        except asyncio.QueueFull:
            self._drop("overflow")

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        if not self._verifiers.hear(heartbeat, time.monotonic()):
            self._drop("full")

    def _fail(self, pair: PairId) -> None:
        self._metrics.failed.inc()
        log.exception("no decision on a pair", drafter_id=pair.drafter_id, verifier_id=pair.verifier_id)

    def _drop(self, reason: DropReason) -> None:
        self._metrics.dropped.labels(reason).inc()


def _log(decision: WindowDecision) -> None:
    """Logs a decision that changes a choice, with its reason."""
    reason = msgspec.structs.asdict(decision.reason) if decision.reason else None
    log.info("window decided", **msgspec.structs.asdict(decision) | {"reason": reason})
