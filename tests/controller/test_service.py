"""The window controller on an in-process bus: reports in, decisions out."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import structlog
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from awc.policies.static import StaticPolicy
from services.window_controller.pairs import PairController
from services.window_controller.reloads import Reloads
from services.window_controller.service import DECIDED_AT_ONCE, PUBLISHED_AT_ONCE, WindowController
from services.window_controller.settings import ControllerSettings
from shared.bus.memory_bus import Faults, MemoryNetwork
from shared.protocol.messages import Heartbeat, Load, Reason, Report, WindowDecision
from shared.protocol.subjects import broadcast, inbox, new_instance_id, to
from shared.runtime.config import BadSettings, load
from shared.runtime.health import Health
from shared.service import Context
from tests.controller.outside import DRAFTER, VERIFIER, Outside, report

PROBE = new_instance_id("probe")
LADDER = {"window_policy": "ladder", "announce_s": 60.0, "heartbeat_s": 20.0}


class World:
    """A running controller and the outside on one network."""

    def __init__(self, network: MemoryNetwork, settings: ControllerSettings) -> None:
        self.network = network
        self.configuration: ControllerSettings | BadSettings = settings
        self.reloads = Reloads(self._read)
        self.registry = CollectorRegistry()
        self.controller_id = new_instance_id(settings.name)
        self.context = Context(self.controller_id, network.connect(), self.registry, Health(CollectorRegistry()))
        self.outside = Outside(network.connect())
        self.outside.controllers.append(self.controller_id)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_controller_{name}", labels) or 0.0

    def _read(self) -> ControllerSettings:
        if isinstance(self.configuration, BadSettings):
            raise self.configuration
        return self.configuration

    async def reload(self, configuration: ControllerSettings | BadSettings) -> list[MutableMapping[str, Any]]:
        """Has the controller read this; what it logged until it had done so."""
        self.configuration = configuration
        with structlog.testing.capture_logs() as logged:
            self.reloads.ask()
            async with asyncio.timeout(5):
                while not logged:  # noqa: ASYNC110  it is read in a thread
                    await asyncio.sleep(0.005)
        return logged

    async def settled(self) -> None:
        """When the controller has done all that was said before: it answers reports in order. Once per test."""
        answered = asyncio.Event()
        subscription = await self.outside.bus.subscribe(inbox("drafter", PROBE), lambda *_: answered.set())
        await self.outside.send_heartbeat(PROBE, sender_id=PROBE)
        await self.outside.report(report(0, drafter_id=PROBE, verifier_id=PROBE), sender_id=PROBE)
        await asyncio.wait_for(answered.wait(), timeout=5)
        await subscription.unsubscribe()


@asynccontextmanager
async def running(faults: Faults | None = None, **settings: object) -> AsyncIterator[World]:
    chosen = ControllerSettings.model_validate(LADDER | settings)
    world = World(MemoryNetwork(seed=1, faults=faults), chosen)
    await world.outside.subscribe()
    controller = await WindowController.start(chosen, world.context, world.reloads)
    task = asyncio.create_task(controller.run())
    try:
        yield world
        assert not task.done()
        await controller.drain()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_report_is_answered_with_a_decision_to_its_drafter_only() -> None:
    async with running(window_policy="static", window=4, chunk=4, free_run=False, min_confidence=0.4) as world:
        await world.outside.send_heartbeat()
        await world.outside.report(report(0))
        assert await world.outside.decision() == WindowDecision(
            drafter_id=DRAFTER,
            verifier_id=VERIFIER,
            window=4,
            chunk=4,
            free_run=False,
            policy="static",
            sequence=1,
            min_confidence=0.4,
            reason=Reason(1, 1.0, draft_ms=10.0, rtt_ms=20.0, pass_ms=0.0, tpot_ms=30.0, queue=0.5, batch=0.0),
        )
        assert world.outside.senders == {world.controller_id}
        await world.settled()
        assert world.outside.decisions.empty()


async def test_the_ladder_widens_the_window_of_a_drafter_that_is_always_right() -> None:
    async with running() as world:
        await world.outside.send_heartbeat()
        for sequence in range(30):
            await world.outside.report(report(sequence))
        decisions = [await world.outside.decision() for _ in range(3)]
        assert [decision.window for decision in decisions] == [8, 12, 16]
        assert [decision.sequence for decision in decisions] == [1, 2, 3]
        await world.settled()
        assert world.count("reports_total") == 31


async def test_the_confidence_policy_stops_a_drafter_sooner_whose_guesses_are_mostly_discarded() -> None:
    async with running(window_policy="confidence") as world:
        await world.outside.send_heartbeat()
        for sequence in range(2):
            await world.outside.report(report(sequence, matched=8, mismatched=8, discarded=48))
        decisions = [await world.outside.decision() for _ in range(2)]
        assert [(decision.window, decision.policy) for decision in decisions] == [(8, "confidence")] * 2
        assert 0 < decisions[0].min_confidence < decisions[1].min_confidence


async def test_a_lost_decision_is_announced_again_although_nothing_is_reported() -> None:
    async with running(announce_s=0.05) as world:
        lost = to("drafter", DRAFTER, WindowDecision, world.controller_id)
        world.network.cut(lost)
        await world.outside.send_heartbeat()
        await world.outside.report(report(0))
        await world.settled()
        assert world.outside.decisions.empty()
        world.network.mend(lost)
        assert (await world.outside.decision()).window == 8
        assert (await world.outside.decision()).window == 8


async def test_a_pair_that_is_not_reported_any_more_is_forgotten() -> None:
    async with running(announce_s=0.05, pair_expiry_s=0.2) as world:
        await world.outside.send_heartbeat()
        await world.outside.report(report(5))
        await world.outside.decision()
        async with asyncio.timeout(5):
            await world.outside.silence()
        assert world.count("pairs") == 0
        await world.outside.report(report(0))
        assert (await world.outside.decision()).window == 8
        assert world.count("dropped_messages_total", reason="replayed") == 0


async def test_a_report_in_another_drafters_name_is_dropped_and_counted() -> None:
    async with running() as world:
        await world.outside.send_heartbeat()
        await world.outside.report(report(0), sender_id=new_instance_id("liar"))
        await world.settled()
        assert world.outside.decisions.empty()
        assert world.count("dropped_messages_total", reason="foreign") == 1


async def test_a_heartbeat_in_another_verifiers_name_makes_nobody_alive() -> None:
    async with running() as world:
        await world.outside.send_heartbeat(sender_id=new_instance_id("liar"))
        await world.outside.report(report(0))
        await world.settled()
        assert world.outside.decisions.empty()
        assert world.count("dropped_messages_total", reason="foreign") == 1
        assert world.count("dropped_messages_total", reason="unknown_verifier") == 1


async def test_only_the_heartbeat_of_a_verifier_makes_a_verifier_alive() -> None:
    async with running() as world:
        heartbeat = Heartbeat("drafter", VERIFIER, 5.0, ["tiny"], 1024, 100, "", Load(), False)
        for service in ("drafter", "verifier"):
            await world.outside.bus.publish(broadcast(Heartbeat, service, VERIFIER), heartbeat)
        await world.outside.report(report(0))
        await world.settled()
        assert world.count("dropped_messages_total", reason="unknown_verifier") == 1
        assert world.count("dropped_messages_total", reason="foreign") == 1, "of the other nothing is heard"


async def test_a_message_of_another_kind_on_its_subjects_is_dropped_and_counted() -> None:
    async with running() as world:
        heartbeat = Heartbeat("verifier", DRAFTER, 5.0, [], 0, 0, "", Load(), False)
        await world.outside.bus.publish(to("controller", world.controller_id, Report, DRAFTER), heartbeat)
        await world.outside.bus.publish(broadcast(Heartbeat, "verifier", DRAFTER), report(0))
        await world.settled()
        assert world.count("dropped_messages_total", reason="foreign") == 2


async def test_a_repeated_report_is_counted_once() -> None:
    async with running(Faults(duplication=1.0)) as world:
        await world.outside.send_heartbeat()
        await world.outside.report(report(0))
        await world.outside.decision()
        await world.settled()
        assert world.count("dropped_messages_total", reason="replayed") >= 1


async def test_reports_that_come_faster_than_they_are_decided_on_are_dropped_and_counted() -> None:
    async with running(max_waiting=1) as world:
        await world.outside.send_heartbeat()
        for sequence in range(10):
            await world.outside.report(report(sequence))
        await world.outside.decision()
        assert world.count("dropped_messages_total", reason="overflow") > 0


async def test_a_drafter_that_reports_all_the_time_leaves_room_for_the_others() -> None:
    async with running(max_waiting=100) as world:
        await world.outside.send_heartbeat()
        liar = new_instance_id("liar")
        for sequence in range(1000):
            await world.outside.report(report(sequence, drafter_id=liar), sender_id=liar)
        await world.outside.report(report(0))
        await world.outside.decision()
        assert world.count("dropped_messages_total", reason="frequent") > 800
        assert world.count("dropped_messages_total", reason="overflow") == 0


@pytest.mark.parametrize(("failing", "name"), [(StaticPolicy, "decide"), (PairController, "observe")])
async def test_what_fails_on_a_report_costs_that_report_only(
    failing: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(window_policy="static") as world:
        await world.outside.send_heartbeat()
        failed = asyncio.Event()

        def fail(*_: object) -> None:
            failed.set()
            raise RuntimeError("no idea")

        with monkeypatch.context() as patch:
            patch.setattr(failing, name, fail)
            await world.outside.report(report(0))
            await asyncio.wait_for(failed.wait(), timeout=5)
        assert world.count("failed_decisions_total") == 1
        await world.outside.report(report(1))
        assert (await world.outside.decision()).window == 8


async def test_it_sends_heartbeats_and_a_draining_one_at_the_end() -> None:
    async with running(heartbeat_s=0.05) as world:
        first, second = await world.outside.heartbeat(), await world.outside.heartbeat()
        assert first == second
        assert (first.instance_id, first.interval_s, first.draining) == (world.controller_id, 0.05, False)
    heartbeats = [await world.outside.heartbeat()]
    while not world.outside.heartbeats.empty():
        heartbeats.append(world.outside.heartbeats.get_nowait())
    assert heartbeats[-1].draining


@asynccontextmanager
async def second_of(world: World) -> AsyncIterator[str]:
    """A second controller, whose windows are of 4; its id."""
    controller_id = new_instance_id("controller")
    world.outside.controllers.append(controller_id)
    context = Context(controller_id, world.network.connect(), CollectorRegistry(), world.context.health)
    settings = ControllerSettings(window_policy="static", window=4)
    controller = await WindowController.start(settings, context, world.reloads)
    task = asyncio.create_task(controller.run())
    try:
        yield controller_id
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_controllers_announce_with_numbers_of_their_own() -> None:
    async with running(window_policy="static") as world, second_of(world) as second:
        await world.outside.send_heartbeat()
        for sequence, controller_id in enumerate((world.controller_id, second)):
            await world.outside.report(replace(report(sequence), controllers=(controller_id,)))
        decisions = [await world.outside.decision(), await world.outside.decision()]
        assert {(decision.window, decision.sequence) for decision in decisions} == {(8, 1), (4, 1)}
        assert world.outside.senders == {world.controller_id, second}


async def test_a_drafter_hears_of_the_controller_that_leads_alone_and_of_the_next_as_soon_as_that_leads() -> None:
    async with running(window_policy="static") as world, second_of(world) as second:
        await world.outside.send_heartbeat()
        for sequence, leader in enumerate((second, world.controller_id, second)):
            both = (leader, *({world.controller_id, second} - {leader}))
            await world.outside.report(replace(report(sequence), controllers=both))
            decision = await world.outside.decision()
            assert decision.window == (4 if leader == second else 8)
        assert world.count("reports_total") == 3
        await world.outside.report(replace(report(3), controllers=(second, new_instance_id("controller"))))
        await world.settled()
        assert world.count("reports_total") == 4, "that of the probe"


async def test_a_decision_that_changes_a_window_is_logged_with_policy_and_reason() -> None:
    async with running(window_policy="static", window=4) as world:
        await world.outside.send_heartbeat()
        with structlog.testing.capture_logs() as logged:
            await world.outside.report(report(0))
            await world.outside.decision()
        (line,) = logged
        told = {name: line[name] for name in ("event", "drafter_id", "verifier_id", "window", "policy")}
        assert list(told.values()) == ["window decided", DRAFTER, VERIFIER, 4, "static"]
        assert (line["reason"]["acceptance"], line["reason"]["rtt_ms"]) == (1.0, 20.0)


async def test_another_policy_is_taken_while_pairs_go_on() -> None:
    async with running() as world:
        await world.outside.send_heartbeat()
        await world.outside.report(report(0))
        first = await world.outside.decision()
        wanted = ControllerSettings.model_validate(LADDER | {"window_policy": "static", "window": 1})
        (line,) = await world.reload(wanted)
        assert (line["event"], line["window_policy"], line["window"]) == ("configuration taken", "static", 1)
        await world.outside.report(report(1))
        second = await world.outside.decision()
        assert [(each.policy, each.window, each.chunk) for each in (first, second)] == [
            ("ladder", 8, 2), ("static", 1, 1),
        ]  # fmt: skip
        assert first.sequence < second.sequence


async def test_another_start_of_the_same_policy_is_taken_too() -> None:
    async with running() as world:
        await world.reload(ControllerSettings.model_validate(LADDER | {"window": 2}))
        await world.outside.send_heartbeat()
        await world.outside.report(report(0))
        assert (await world.outside.decision()).window == 2


@pytest.mark.parametrize(
    ("configuration", "event"),
    [
        (BadSettings("no setting is called windo"), "configuration not taken, the old one stays"),
        (ControllerSettings.model_validate(LADDER), "configuration taken"),
    ],
    ids=["bad", "unchanged"],
)
async def test_a_configuration_that_is_bad_or_says_the_same_leaves_the_pairs_their_state(
    configuration: ControllerSettings | BadSettings, event: str
) -> None:
    async with running() as world:
        await world.outside.send_heartbeat()
        for sequence in range(9):
            await world.outside.report(report(sequence))
        assert (await world.outside.decision()).window == 8
        await world.settled()
        (line,) = await world.reload(configuration)
        assert line["event"] == event
        await world.outside.report(report(9))  # the tenth sample: the ladder may move
        assert (await world.outside.decision()).window == 12


async def test_a_changed_setting_that_needs_a_restart_is_named_each_time() -> None:
    async with running() as world:
        wanted = ControllerSettings.model_validate(LADDER | {"window": 4, "max_pairs": 5, "drain_s": 1.0})
        for _ in range(2):
            taken, waiting = await world.reload(wanted)
            assert taken["event"] == "configuration taken"
            assert (waiting["log_level"], sorted(waiting["names"])) == ("warning", ["drain_s", "max_pairs"])


@pytest.mark.parametrize(("window", "chunk"), [(0, 1), (1, 1), (2, 2), (64, 2)])
def test_the_default_chunk_gives_way_to_a_smaller_window(window: int, chunk: int) -> None:
    start = ControllerSettings(window=window).start
    assert (start.window, start.chunk) == (window, chunk)


def test_a_chunk_that_the_window_cannot_hold_stops_the_process_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(ControllerSettings, ["--window", "4", "--chunk", "5"], "controller")
    assert stopped.value.code == 2
    assert "chunk must be 1 to 4 with a window of 4, got 5" in capsys.readouterr().err


async def test_reports_of_many_pairs_are_decided_on_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[int] = []
    turns: list[int] = []  # of other tasks, until then
    num_turns = 0
    observe = PairController.observe

    def count(controller: PairController, reports: list[Report], now: float) -> list[WindowDecision]:
        decided.append(sum(len(each.pairs) for each in reports))
        turns.append(num_turns)
        return observe(controller, reports, now)

    async def other() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(PairController, "observe", count)
    async with running(window_policy="static") as world:
        task = asyncio.create_task(other())
        (one,) = report(0).pairs
        names = [f"cloud-{number}.0123456789ab" for number in range(DECIDED_AT_ONCE // 2)]
        for sequence in range(10):
            many = [replace(one, verifier_id=name) for name in names]
            await world.outside.report(Report(DRAFTER, sequence, many))
        await world.settled()
        task.cancel()
    assert all(b > a for a, b in pairwise(turns))
    assert sum(decided) == 10 * len(names) + 1
    assert max(decided) < 2 * DECIDED_AT_ONCE
    assert len(decided) < 10, "some of them together"


async def test_other_tasks_have_their_turn_while_many_decisions_go_out() -> None:
    num_pairs, published, seen = 3 * PUBLISHED_AT_ONCE, 0, [0]

    def count(subject: str, message: object) -> None:
        nonlocal published
        published += isinstance(message, WindowDecision)

    async def other() -> None:
        while True:
            seen.append(published)
            await asyncio.sleep(0)

    async with running(window_policy="static") as world:
        await world.outside.bus.subscribe(inbox("drafter", DRAFTER), count)
        verifier_ids = [f"cloud-{number}.0123456789ab" for number in range(num_pairs)]
        for verifier_id in verifier_ids:
            await world.outside.send_heartbeat(verifier_id, sender_id=verifier_id)
        (one,) = report(0).pairs
        task = asyncio.create_task(other())
        await world.outside.report(Report(DRAFTER, 0, [replace(one, verifier_id=name) for name in verifier_ids]))
        await world.settled()
        task.cancel()
    assert published == num_pairs
    assert max(b - a for a, b in pairwise(seen)) <= 2 * PUBLISHED_AT_ONCE
