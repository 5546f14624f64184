"""What a drafter tells of itself: reports, heartbeats, metrics; and turns of its sessions."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from awc.policy import DEFAULT_CHOICE
from services.edge_drafter import metrics
from shared.policies.reading import FIRST_READ, LAST_READ
from shared.protocol.messages import Close, Draft, Heartbeat, Report, WindowDecision
from shared.runtime.machine import machine_id
from tests.drafter.conftest import PROMPT, TEXT, Start, World
from tests.fakes import answer
from tests.peers import until

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


async def test_a_report_tells_what_was_seen_of_a_verifier_since_the_last_one(start: Start) -> None:
    async with start(report_s=0.3) as world:
        world.model.is_right = lambda position: position != len(PROMPT) + 3
        await world.controller.send_heartbeat()
        request = await world.quick_link()
        await world.drafted(request, 0, WINDOW)
        await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=1))
        await until(lambda: sum(pair.matched for _, pair in pairs(world)) == 2)
        await world.drafted(request, WINDOW, 2)
        await world.tell(world.verifier, world.verdict(request, 2, TEXT[2:4], accepted=1, epoch=1))
        await world.drafted(request, 4, WINDOW, epoch=1)
        await world.tell(world.gateway, Close(request.session_id, 1))
        await world.settled()
        await world.controller.find(Report)
        await until(lambda: sum(pair.discarded for _, pair in pairs(world)) == WINDOW + 2 - 4 + WINDOW)
        seen = [pair for _, pair in pairs(world)]
        assert [sequence for sequence, _ in pairs(world)] == list(range(1, len(seen) + 1))
        totals = [sum(getattr(pair, name) for pair in seen) for name in ("drafted", "matched", "mismatched", "late")]
        assert totals == [2 * WINDOW + 2, 3, 1, 1]
        assert sum(pair.matched + pair.mismatched + pair.discarded for pair in seen) == 2 * WINDOW + 2
        assert {pair.verifier_id for pair in seen} == {world.verifier.instance_id}
        assert all(pair.window == WINDOW and pair.queue == 0.25 and pair.rtt_ms > 0 for pair in seen)
        assert all(pair.num_sessions == 0 or pair.context > len(PROMPT) for pair in seen)


def pairs(world: World) -> list:
    return [(report.sequence, pair) for report in world.controller.of(Report) for pair in report.pairs]


async def test_what_a_session_guessed_for_a_verifier_is_reported_of_it_though_it_moved_to_another(start: Start) -> None:
    async with start(report_s=0.3) as world:
        await world.controller.send_heartbeat()
        other = await world.meet("verifier", "other")
        request = await world.speculate()
        await world.drafted(request, 0, WINDOW)
        rebound = await world.speculate(session_id=request.session_id, term=2, committed=TEXT[:3], verifier=other)
        await other.find(Draft, lambda draft: draft.term == 2 and TEXT[2 + WINDOW] in draft.token_ids)
        await world.tell(other, world.verdict(rebound, 3, TEXT[3:5], accepted=2))
        await until(lambda: sum(pair.matched for _, pair in pairs(world)) == 2)
        told = {world.verifier.instance_id: (WINDOW, 0, WINDOW), other.instance_id: (WINDOW + 2, 2, 0)}
        await until(lambda: {verifier_id: totals(world, verifier_id) for verifier_id in told} == told)


def totals(world: World, verifier_id: str) -> tuple[int, int, int]:
    """Guesses drafted, matched and discarded, of all reports of a verifier."""
    mine = [pair for _, pair in pairs(world) if pair.verifier_id == verifier_id]
    return sum(pair.drafted for pair in mine), sum(pair.matched for pair in mine), sum(pair.discarded for pair in mine)


async def test_reports_go_to_the_two_controllers_that_they_name_and_the_first_without_its_name_too(
    start: Start,
) -> None:
    async with start(report_s=0.05) as world:
        me = world.controller.instance_id
        await world.drafted(await world.speculate(), 0, WINDOW)
        await world.controller.send_heartbeat()
        alone = await world.controller.find(Report, lambda report: len(report.controllers) == 1)
        others = [await world.meet("controller", name) for name in ("two", "three", "four")]
        for other in others:
            await other.send_heartbeat()
        both = await world.controller.find(Report, lambda report: len(report.controllers) == 2)
        assert alone.controllers == both.controllers[:1] == (me,)
        (second,) = [other for other in others if other.instance_id == both.controllers[1]]
        await second.find(Report, lambda report: report.sequence == both.sequence)

        await world.controller.send_heartbeat(draining=True)
        await world.controller.find(Report, lambda report: me not in report.controllers)
        new = await second.find(Report, lambda report: me not in report.controllers)
        await second.find(Report, lambda report: report.sequence == new.sequence + 2)
        assert [me in report.controllers for report in world.controller.of(Report)].count(False) == 1
        unnamed = [other for other in others if other.instance_id not in (*both.controllers, *new.controllers)]
        assert [other.of(Report) for other in unnamed] == [[]]


async def test_an_idle_drafter_reports_nothing(start: Start) -> None:
    async with start(report_s=0.05, heartbeat_s=0.05) as world:
        await world.controller.send_heartbeat()
        heard = len(world.gateway.heard)
        await until(lambda: len(world.gateway.heard) > heard + 4)
        assert world.controller.of(Report) == []


async def test_the_metrics_of_a_verifier_are_labelled_by_its_name_and_never_by_what_a_stranger_says(
    start: Start,
) -> None:
    async with start(report_s=0.05) as world:
        await world.tell(
            world.controller, WindowDecision(world.drafter.instance_id, "made-up.0123456789ab", 3, 2, True, "test", 1)
        )
        request = await world.speculate()
        await world.drafted(request, 0, WINDOW)
        await world.controller.send_heartbeat()
        assert (await world.controller.find(Report)).machine == machine_id()
        assert world.registry.get_sample_value("dsd_drafter_window_tokens", {"verifier": "cloud"}) == WINDOW
        assert world.registry.get_sample_value("dsd_drafter_min_confidence_ratio", {"verifier": "cloud"}) == 0
        assert world.registry.get_sample_value("dsd_drafter_window_tokens", {"verifier": "made-up"}) is None


async def test_a_heartbeat_tells_what_it_drafts_for_and_how_busy_it_is(start: Start) -> None:
    async with start(heartbeat_s=0.05, model_name="tiny", max_sessions=3, feed_tokens=32) as world:
        first = await world.gateway.find(Heartbeat)
        assert (first.service, first.instance_id, first.models) == ("drafter", world.drafter.instance_id, ["tiny"])
        assert (first.fingerprint, first.vocab_size, first.max_context) == ("fake-draft", 97, 1024)
        assert (first.interval_s, first.draining) == (0.05, False)
        world.model.gate.shut()
        await world.speculate(prompt=range(1, 50))
        busy = await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 1)
        assert world.registry.get_sample_value("dsd_drafter_kv_bytes") == world.model.kv_bytes == 4096
        assert (busy.load.max_sessions, busy.load.queue_tokens, busy.load.token_budget) == (3, 49, 32)


async def test_warming_up_measures_the_speed_of_drafting_and_of_prefill(world: World) -> None:
    await world.drafter.loop.warm_up()
    assert world.drafter.loop.step_ms > 0
    assert world.drafter.loop.prefill_ms > 0
    assert [[fed for _, fed in step] for step in world.model.steps] == [[64]] * 2 + [[1]] * 4 + [[1] * 4] * 4


async def test_a_machine_that_slept_during_a_step_does_not_pass_for_slow(world: World) -> None:
    loop = world.drafter.loop
    await loop.warm_up()
    before_ms = loop.prefill_ms
    for prompt, num_steps in ((range(1, 65), 1), (range(1, 2), 1)):
        world.model.gate.shut()
        request = await world.speculate(prompt)
        await world.settled()
        await asyncio.sleep(0.5)
        world.model.gate.open()
        await world.drafted(request, 0, num_steps)
    assert loop.prefill_ms <= 2.5 * before_ms, "a chunk of 500 ms"
    assert loop.step_ms < 25, "a step of 500 ms that counts a tenth adds 50"


async def test_a_drafter_that_read_slowly_and_then_nothing_is_soon_as_fast_as_at_its_start(world: World) -> None:
    loop = world.drafter.loop
    await loop.warm_up()
    first_ms = loop.prefill_ms
    loop.prefill_ms = 100 * first_ms
    for _ in range(120):
        loop.on_heartbeat()
    assert first_ms < loop.prefill_ms < 2 * first_ms


async def test_half_a_chunk_is_enough_for_a_prefill_time_which_lasts_one_heartbeat_longer(start: Start) -> None:
    async with start(heartbeat_s=20.0) as world:
        await world.drafted(await world.speculate(range(1, 41)), 0, 1)
        loop = world.drafter.loop
        assert (read_ms := loop.prefill_ms) > 0
        loop.on_heartbeat()
        assert loop.prefill_ms == read_ms
        loop.on_heartbeat()
        assert loop.prefill_ms < read_ms


async def test_heartbeats_tell_of_a_prefill_time_that_returns(start: Start) -> None:
    async with start(heartbeat_s=0.05) as world:
        world.drafter.loop.prefill_ms = 100.0
        await world.gateway.find(Heartbeat, lambda heartbeat: 0 < heartbeat.load.prefill_ms < 50)


async def test_a_drafter_leaves_out_a_part_by_its_own_prefill_time(world: World) -> None:
    prompt = [1 + number % 90 for number in range(900)]
    world.drafter.loop.prefill_ms = 10.0
    request = await world.speculate(prompt)
    read = [*prompt[:FIRST_READ], *prompt[-LAST_READ:]]
    assert await world.drafted(request, 0, WINDOW) == answer(read, WINDOW)


def test_the_verifiers_that_label_metrics_are_bounded_whoever_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_VERIFIERS", 3)
    registry = CollectorRegistry()
    shown = metrics.DrafterMetrics(registry)
    for number in (0, 1, 2, 0, 3, 4):
        shown.show_pair(f"cloud-{number}", 8, 0.5, 20.0)
    for name in ("window_tokens", "min_confidence_ratio", "rtt_seconds"):
        (family,) = [each for each in registry.collect() if each.name == f"dsd_drafter_{name}"]
        assert {sample.labels["verifier"] for sample in family.samples} == {"cloud-0", "cloud-3", "cloud-4"}
