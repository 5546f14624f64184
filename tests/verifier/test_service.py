"""A verifier on the bus: texts, verdicts, leases, drains. test_input.py tests invalid input."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry

from services.cloud_verifier import service
from services.cloud_verifier.engine import StepTime
from services.cloud_verifier.loop import MAX_FAILURES
from services.cloud_verifier.service import Verifier, now_ms
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.engine import TorchEngine
from shared.bus.memory_bus import MemoryNetwork
from shared.policies.kv_cache import KV_AHEAD, KV_STEP, likely_kv_tokens
from shared.protocol.messages import (
    NO_TOKENS,
    Close,
    Failure,
    Heartbeat,
    Load,
    Open,
    Opened,
    Poll,
    Sampling,
    TokenIds,
    Verdict,
)
from shared.protocol.subjects import new_session_id
from shared.runtime.health import Health
from shared.runtime.machine import machine_id
from shared.service import Context
from tests.fakes import FakeCache, FakeTarget, answer, fake_engine, wrong
from tests.peers import until
from tests.plugins.networks import Network
from tests.verifier.conftest import PROMPT, Start, World, running

pytestmark = pytest.mark.timeout(60)


def test_the_engine_computes_in_the_thread_that_has_loaded_it(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noted() -> list[StepTime]:
        threads.append(threading.get_ident())
        return []

    def load(_: VerifierSettings) -> TorchEngine:
        engine = fake_engine(FakeTarget())
        monkeypatch.setattr(engine, "warm_up", noted)
        noted()
        return engine

    def run_service(_: str, __: VerifierSettings, start: Callable[[Context], Coroutine[None, None, Verifier]]) -> None:
        async def run() -> None:
            registry = CollectorRegistry()
            await start(Context("verifier.1", MemoryNetwork().connect(), registry, Health(CollectorRegistry())))

        asyncio.run(run())

    monkeypatch.setattr(service, "run_service", run_service)
    service.run(VerifierSettings(target="fake"), load)
    assert threads == [threads[0]] * 2
    assert threads[0] != threading.get_ident()


async def test_without_a_drafter_the_text_is_the_targets_with_the_sessions_own_sampling(world: World) -> None:
    request = await world.open(drafted=False, seed=9)
    assert await world.text(request) == answer(PROMPT, 12, seed=9)
    assert (await world.finish(request)).finish == "length"
    assert world.fates() == {"accepted": 0, "rejected": 0, "late": 0, "discarded": 0}


async def test_an_opening_is_answered_with_lease_load_and_fingerprint(start: Start) -> None:
    async with start(lease_s=7.0, max_sessions=9) as world:
        request = await world.open()
        opened = await world.gateway.find(Opened)
        assert (opened.session_id, opened.term) == (request.session_id, 1)
        assert (opened.lease_s, opened.fingerprint) == (7.0, "fake-numerics")
        assert (opened.load.num_sessions, opened.load.max_sessions) == (1, 9)


async def test_a_stop_id_ends_the_text(world: World) -> None:
    text = answer(PROMPT, 12)
    request = await world.open(stop_ids=text[4:5])
    assert await world.text(request) == text[: text.index(text[4]) + 1]
    assert (await world.finish(request)).finish == "stop"


async def test_right_guesses_are_accepted_and_verdicts_go_to_gateway_and_drafter(world: World) -> None:
    text = answer(PROMPT, 12)
    world.model.gate.shut()
    request = await world.open()
    await world.model.gate.held()
    await world.draft(request, 0, text[:4])
    await world.settled()
    world.model.gate.let(2)
    of_gateway = await world.gateway.find(Verdict, lambda verdict: verdict.accepted > 0)
    assert (of_gateway.token_ids, of_gateway.accepted) == (tuple(text[1:5]), 3)
    assert await world.drafter.find(Verdict, lambda verdict: verdict.accepted > 0) == of_gateway
    assert world.drafter.senders == world.gateway.senders - {world.gateway.instance_id}
    world.model.gate.open()
    assert await world.text(request) == text


async def test_each_verdict_reaches_the_drafter_before_the_close_that_a_gateway_answers_it_with(world: World) -> None:
    world.drafter.heard = world.gateway.heard  # one list in the order of arrival; only a gateway's have logprobs
    await world.open(logprobs=1)
    await world.gateway.find(Verdict, lambda verdict: bool(verdict.finish and verdict.logprobs))
    assert [verdict.logprobs is not None for verdict in world.gateway.of(Verdict)] == [False, True] * 12


async def test_a_guess_that_arrives_after_its_position_is_committed_is_late_and_never_accepted(world: World) -> None:
    text = answer(PROMPT, 12)
    world.model.gate.shut()
    request = await world.open()
    world.model.gate.let(3)
    await world.gateway.find(Verdict, lambda verdict: text[2] in verdict.token_ids)
    await world.model.gate.held()
    await world.draft(request, 0, text[:4])  # three are committed, the fourth is being computed
    sent = await world.drafter.find(Verdict, lambda verdict: verdict.base == len(PROMPT) and len(verdict.token_ids) > 1)
    assert (sent.token_ids, sent.accepted, sent.tally.late) == (tuple(text[:3]), 0, 3)
    world.model.gate.open()
    assert await world.text(request) == text
    tally = (await world.finish(request)).tally
    assert (tally.accepted, tally.late, tally.rejected, tally.discarded) == (0, 4, 0, 0)
    assert world.fates() == {"accepted": 0, "rejected": 0, "late": 4, "discarded": 0}


async def test_every_guess_received_has_one_fate_in_the_tally_and_in_the_metrics(world: World) -> None:
    text = answer(PROMPT, 12)
    world.model.gate.shut()
    request = await world.open()
    await world.model.gate.held()
    await world.draft(request, 0, [*text[:3], wrong(text[3]), 1, 2])  # 1 late, 2 right, 1 wrong, 2 after it
    await world.draft(request, 0, text[:2])  # a duplicate is not counted
    await world.settled()
    world.model.gate.let(2)
    await world.gateway.find(Verdict, lambda verdict: verdict.accepted == 2)
    await world.model.gate.held()
    await world.draft(request, 4, [7, 7, 7])  # of the old epoch
    await world.draft(request, 9, [8], epoch=1)  # a gap
    await world.settled()
    world.model.gate.open()
    await world.finish(request)
    await world.draft(request, 12, [9, 9], epoch=2)  # no token follows the end
    await world.settled()
    await world.send(world.gateway, Close(request.session_id, 1))
    await world.settled()
    assert world.fates() == {"accepted": 2, "rejected": 1, "late": 1, "discarded": 2 + 3 + 1 + 2}


async def test_a_session_closed_during_a_pass_discards_its_guesses_and_sends_nothing(world: World) -> None:
    text = answer(PROMPT, 12)
    world.model.gate.shut()
    request = await world.open()
    await world.draft(request, 0, text[:3])
    await world.settled()
    await world.send(world.gateway, Close(request.session_id, 1))
    await world.settled()
    assert sum(world.fates().values()) == world.fates()["discarded"] == 3
    world.model.gate.open()
    other = await world.open(prompt=(8, 9))
    assert await world.text(other) == answer((8, 9), 12)
    assert world.text_received(request) == []
    await world.send(world.gateway, Poll(request.session_id, 1, 0))
    failure = await world.gateway.find(Failure, lambda failure: failure.session_id == request.session_id)
    assert (failure.code, failure.retryable) == ("closed", False)
    await world.draft(request, 3, text[3:4])
    assert (await world.drafter.find(Failure)).code == "closed"


async def test_with_eight_sessions_the_batch_grows_above_one(world: World) -> None:
    world.model.gate.shut()
    prompts = [(number, 5, 6) for number in range(8)]
    requests = [await world.open(prompt, drafted=False) for prompt in prompts]
    world.model.gate.open()
    for prompt, request in zip(prompts, requests, strict=True):
        assert await world.text(request) == answer(prompt, 12)
    assert max(verdict.batch for verdict in world.gateway.of(Verdict)) == 8


async def test_logprobs_go_to_the_gateway_that_asked_and_not_to_the_drafter(world: World) -> None:
    request = await world.open(logprobs=2)
    await world.finish(request)
    verdicts = [verdict for verdict in world.gateway.of(Verdict) if verdict.token_ids]
    assert all(len(verdict.logprobs) == len(verdict.token_ids) for verdict in verdicts)
    assert [len(each.top_ids) for verdict in verdicts for each in verdict.logprobs] == [2] * 12
    await world.drafter.find(Verdict, lambda verdict: bool(verdict.finish))
    assert all(verdict.logprobs is None for verdict in world.drafter.of(Verdict))


async def test_a_poll_is_answered_while_a_pass_runs(world: World) -> None:
    world.model.gate.shut()
    request = await world.open()
    world.model.gate.let(2)
    await world.gateway.find(Verdict, lambda verdict: verdict.base == len(PROMPT) + 1)
    await world.model.gate.held()
    await world.send(world.gateway, Poll(request.session_id, 1, 0))
    sent = await world.gateway.find(Verdict, lambda verdict: len(verdict.token_ids) == 2)
    assert (sent.base, sent.token_ids, sent.accepted) == (len(PROMPT), tuple(answer(PROMPT, 2)), 0)


async def test_polling_a_session_that_is_not_here_is_answered_with_a_failure(world: World) -> None:
    await world.send(world.gateway, Poll("ab" * 16, 3, 0))
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.term, failure.code) == ("ab" * 16, 3, "unknown_session")
    assert failure.retryable


async def test_opening_twice_is_answered_twice_and_changes_nothing(world: World) -> None:
    world.model.gate.shut()
    request = await world.open()
    world.model.gate.let(1)
    await world.gateway.find(Verdict)
    await world.send(world.gateway, request)
    await until(lambda: len(world.gateway.of(Opened)) == 2)
    world.model.gate.open()
    assert await world.text(request) == answer(PROMPT, 12)


async def test_a_higher_term_binds_another_drafter_and_drops_drafts_of_the_old_one(world: World) -> None:
    text = answer(PROMPT, 12)
    other = await world.meet("drafter", "edge-2")
    world.model.gate.shut()
    request = await world.open()
    await world.model.gate.held()
    rebound = Open(
        request.session_id, 2, other.instance_id, request.prompt_ids, request.committed_ids, request.sampling,
        request.stop_ids, request.max_tokens, True,
    )  # fmt: skip
    await world.send(world.gateway, rebound)
    await world.draft(request, 0, text[:1], term=2)
    await world.draft(request, 0, text[:3], term=2, sender=other)
    await world.settled()
    world.model.gate.open()
    assert await world.text(request) == text
    assert world.dropped("foreign drafter") == 1
    assert world.fates()["accepted"] == 2
    assert other.of(Verdict)
    assert world.drafter.of(Verdict) == []


async def test_without_free_run_the_verifier_waits_for_its_drafter_but_no_longer_than_its_lease(start: Start) -> None:
    async with start(drafter_lease_s=0.2) as world:
        request = await world.open(free_run=False)
        await until(lambda: len(world.text_received(request)) == 1)
        await world.draft(request, 1, answer(PROMPT, 3)[1:])
        await world.drafter.find(Verdict, lambda verdict: verdict.accepted == 2)
        await world.settled()
        assert len(world.text_received(request)) == 4
        assert await world.text(request) == answer(PROMPT, 12)


async def test_a_guess_wakes_a_verifier_that_waits_for_it(start: Start) -> None:
    async with start(drafter_lease_s=60.0) as world:
        request = await world.open(free_run=False)
        state = world.verifier.table.find(request.session_id).state
        await until(lambda: state.length == len(PROMPT) + 1)
        await world.draft(request, 1, answer(PROMPT, 3)[1:])
        verdict = await world.gateway.find(Verdict, lambda verdict: verdict.accepted == 2)
        assert verdict.token_ids == tuple(answer(PROMPT, 4)[1:])


async def test_a_session_of_a_silent_gateway_is_closed_and_that_of_a_living_one_is_not(start: Start) -> None:
    async with start(lease_s=0.4) as world:
        world.model.gate.shut()
        abandoned = await world.open()
        other = await world.meet("gateway", "other")
        kept = Open(
            "cd" * 16, 1, None, abandoned.prompt_ids, abandoned.committed_ids, abandoned.sampling,
            abandoned.stop_ids, 5, True,
        )  # fmt: skip
        await world.send(other, kept)
        async with asyncio.timeout(10):
            while not world.count("verifier_expired_sessions"):
                await other.send_heartbeat()
                await asyncio.sleep(0.05)
        await other.send_heartbeat()
        world.model.gate.open()
        await other.find(Verdict, lambda verdict: verdict.finish == "length")
        await world.draft(abandoned, 0, [1])
        assert (await world.drafter.find(Failure)).code == "closed"
        assert world.count("verifier_expired_sessions") == 1


FULL = 1 << 48
EXTREMES: list[dict[str, object]] = [
    *({"interval_s": interval_s} for interval_s in (1e-9, 3600.0)),
    *({"models": models} for models in ([], ["other"])),
    *({field: value} for field in ("max_context", "vocab_size") for value in (0, FULL)),
    *({field: value} for field in ("fingerprint", "provider", "machine") for value in ("", "x" * 64)),
    {"draining": True},
    *({"load": Load(**{field: FULL})} for field in Load.__struct_fields__),
]


async def test_of_a_gateway_s_heartbeat_nothing_counts_but_that_it_came(start: Start) -> None:
    async with start() as world:
        world.model.gate.shut()
        request = await world.open()
        slot = world.verifier.table.find(request.session_id)
        for lie in EXTREMES:
            before = slot.renewed_at
            await world.gateway.send_heartbeat(**lie)
            await until(lambda before=before: slot.renewed_at > before)
            assert slot.renewed_at <= now_ms(), "no longer than a lease from now"
        world.model.gate.open()
        assert await world.text(request) == answer(PROMPT, 12)
        assert world.count("verifier_expired_sessions") == world.dropped("foreign heartbeat") == 0


async def test_polling_renews_a_lease(start: Start) -> None:
    async with start(lease_s=0.3) as world:
        world.model.gate.shut()
        request = await world.open()
        for _ in range(12):
            await world.send(world.gateway, Poll(request.session_id, 1, 0))
            await asyncio.sleep(0.05)
        world.model.gate.open()
        assert await world.text(request) == answer(PROMPT, 12)
        assert world.count("verifier_expired_sessions") == 0


async def test_a_drafter_renews_no_lease(start: Start) -> None:
    async with start(lease_s=0.3) as world:
        world.model.gate.shut()
        request = await world.open()
        async with asyncio.timeout(10):
            while not world.count("verifier_expired_sessions"):
                await world.draft(request, 0, [])
                await asyncio.sleep(0.02)


async def test_a_finished_session_whose_close_was_lost_gives_its_place_away_after_a_lease(start: Start) -> None:
    async with start(lease_s=0.3, max_sessions=1) as world:
        await world.finish(await world.open())
        async with asyncio.timeout(10):
            while not world.count("verifier_expired_sessions"):
                await world.gateway.send_heartbeat()
                await asyncio.sleep(0.02)
        assert await world.text(await world.open()) == answer(PROMPT, 12)


async def test_a_session_that_can_not_be_computed_fails_and_the_others_go_on(world: World) -> None:
    world.model.poison = 0
    world.model.gate.shut()
    good = await world.open()
    bad = await world.open(prompt=(0, 1))
    world.model.gate.open()
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.code, failure.retryable) == (bad.session_id, "internal", True)
    assert await world.text(good) == answer(PROMPT, 12)
    await world.send(world.gateway, Poll(bad.session_id, 1, 0))
    assert await world.gateway.find(Failure, lambda failure: failure.code == "closed")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code"),
    [((), 5, "bad_request"), ((1, 97), 5, "bad_request"), ((1,), 1024, "too_long"), ((1,), 5, "overloaded")],
)
async def test_an_opening_that_can_not_be_served_is_answered_with_a_failure(
    start: Start, prompt: tuple[int, ...], max_tokens: int, code: str
) -> None:
    async with start(max_sessions=1) as world:
        world.model.gate.shut()
        victim = await world.open()
        if code != "overloaded":
            await world.send(world.gateway, Close(victim.session_id, 1))
        request = Open(
            "cd" * 16, 4, None, type(victim.prompt_ids)(prompt), victim.committed_ids, victim.sampling,
            victim.stop_ids, max_tokens, True,
        )  # fmt: skip
        await world.send(world.gateway, request)
        failure = await world.gateway.find(Failure)
        assert (failure.session_id, failure.term, failure.code) == ("cd" * 16, 4, code)
        assert failure.retryable == (code == "overloaded")
        assert world.dropped(code) == 1


async def test_draining_refuses_new_sessions_and_ends_when_the_running_ones_have(world: World) -> None:
    world.model.gate.shut()
    request = await world.open()
    draining = asyncio.create_task(world.verifier.drain())
    await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.draining)
    new = Open(
        new_session_id(), 1, None, request.prompt_ids, request.committed_ids, request.sampling, request.stop_ids, 5,
        True,
    )  # fmt: skip
    await world.send(world.gateway, new)
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.code, failure.retryable) == (new.session_id, "draining", True)
    assert not draining.done()
    world.model.gate.open()
    await asyncio.wait_for(draining, 10)
    assert await world.text(request) == answer(PROMPT, 12)


@pytest.mark.parametrize("last", ["closed", "rebound after its end"])
async def test_draining_ends_with_the_last_session_however_it_ends(world: World, last: str) -> None:
    world.model.gate.shut()
    first, second = await world.open(), await world.open()
    draining = asyncio.create_task(world.verifier.drain())
    await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.draining)
    await world.send(world.gateway, Close(first.session_id, 1))
    await world.settled()
    assert not draining.done()
    if last == "closed":
        await world.send(world.gateway, Close(second.session_id, 1))
    else:
        await world.open(session_id=second.session_id, term=2, max_tokens=2, committed=answer(PROMPT, 2))
    await asyncio.wait_for(draining, 10)


async def test_the_end_of_a_drain_tells_the_gateways_of_sessions_that_are_left(world: World) -> None:
    world.model.gate.shut()
    request = await world.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await world.verifier.drain()
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.term) == (request.session_id, request.term)
    assert (failure.code, failure.retryable) == ("draining", True)
    assert len(world.verifier.table) == 0


async def test_a_session_that_waits_for_kv_cache_is_told_so_and_told_when_it_has_some(start: Start) -> None:
    async with start(kv_tokens=2 * KV_STEP, heartbeat_s=0.05) as world:
        world.model.gate.shut()
        first = await world.open(max_tokens=KV_STEP + 1)
        second, third = await world.open(max_tokens=KV_STEP + 1), await world.open(max_tokens=1)
        told = {opened.session_id: opened for opened in world.gateway.of(Opened)}
        assert [told[each.session_id].has_room for each in (first, second, third)] == [True, False, False]
        await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 3)
        await world.send(world.gateway, Close(first.session_id, 1))
        await world.gateway.find(Opened, lambda opened: opened.session_id == second.session_id and opened.has_room)
        world.model.gate.open()
        await world.gateway.find(Opened, lambda opened: opened.session_id == third.session_id and opened.has_room)
        assert len(world.gateway.of(Opened)) == 5, "nobody is told twice"


async def test_a_session_that_loses_its_kv_cache_to_an_older_one_is_told_so_and_told_when_it_has_some(
    start: Start,
) -> None:
    first_kv = likely_kv_tokens(len(PROMPT), KV_AHEAD)
    async with start(kv_tokens=2 * first_kv, heartbeat_s=0.05) as world:
        world.model.gate.shut()
        old, young = [await world.open(max_tokens=first_kv + 10, drafted=False) for _ in range(2)]
        world.model.gate.open()
        texts = [await world.text(request) for request in (old, young)]
        assert texts == [answer(PROMPT, first_kv + 10)] * 2
        told = [(opened.session_id, opened.has_room) for opened in world.gateway.of(Opened)]
        has_room = [(old.session_id, True), (young.session_id, True)]
        assert told == [*has_room, (young.session_id, False), (young.session_id, True)]
        await until(lambda: world.count("verifier_num_preemptions") == 1)
        assert world.verifier.engine.free_kv_tokens == 2 * first_kv


async def test_a_verifier_with_waiting_sessions_tells_that_a_new_one_gets_no_kv_cache(start: Start) -> None:
    async with start(kv_tokens=2 * KV_STEP, heartbeat_s=0.05) as world:
        world.model.gate.shut()
        await world.open(max_tokens=1)
        alone = await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 1)
        assert alone.load.free_kv_tokens == KV_STEP
        await world.open(max_tokens=KV_STEP)
        full = await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 2)
        assert full.load.free_kv_tokens == 0, "the second session waits for more than is left"


async def test_a_heartbeat_carries_the_model_and_the_load(start: Start) -> None:
    async with start(heartbeat_s=0.05, kv_tokens=2048, model_name="tiny", token_budget=64) as world:
        first = await world.gateway.find(Heartbeat)
        assert (first.service, first.instance_id) == ("verifier", world.verifier.instance_id)
        assert (first.models, first.fingerprint) == (["tiny"], "fake-numerics")
        assert (first.max_context, first.vocab_size, first.interval_s) == (1024, 97, 0.05)
        assert first.machine == machine_id()
        assert (first.load.kv_tokens, first.load.free_kv_tokens, first.draining) == (2048, 2048, False)
        world.model.gate.shut()
        await world.open(prompt=range(1, 30))
        busy = await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.num_sessions == 1)
        assert (busy.load.free_kv_tokens, busy.load.queue_tokens, busy.load.token_budget) == (1984, 29, 64)


@pytest.mark.parametrize("kv_tokens", [512, 600])
async def test_a_context_larger_than_the_kv_cache_is_not_promised_and_what_is_promised_fits(
    start: Start, kv_tokens: int
) -> None:
    async with start(kv_tokens=kv_tokens) as world:
        promised = (await world.gateway.find(Heartbeat)).max_context
        assert promised == kv_tokens // KV_STEP * KV_STEP
        await world.open(max_tokens=promised - len(PROMPT))


async def test_a_session_without_memory_for_its_cache_is_refused_at_open_or_on_admission(
    start: Start,
) -> None:
    async with start(kv_tokens=KV_STEP) as world:
        world.model.gate.shut()
        first, waiting = await world.open(), await world.open()
        world.model.new_cache = no_cache(MemoryError())
        await world.send(world.gateway, Close(first.session_id, 1))
        failure = await world.gateway.find(Failure)
        assert (failure.session_id, failure.code, failure.retryable) == (waiting.session_id, "overloaded", True)
        late = structs.replace(first, session_id=new_session_id())
        await world.send(world.gateway, late)
        failure = await world.gateway.find(Failure, lambda failure: failure.session_id == late.session_id)
        assert (failure.term, failure.code, failure.retryable) == (1, "overloaded", True)
        assert world.dropped("overloaded") == 2
        assert [opened.session_id for opened in world.gateway.of(Opened)] == [first.session_id, waiting.session_id]
        await asyncio.wait_for(world.verifier.drain(), 10)


async def test_a_verifier_whose_model_makes_no_cache_any_more_ends_with_an_error(network: Network) -> None:
    with pytest.raises(AssertionError, match="the verifier ended"):
        await break_down(network)


async def break_down(network: Network) -> None:
    """A verifier runs until its model can't compute any more."""
    async with running(network) as world:
        world.model.new_cache = no_cache(RuntimeError("device-side assert triggered"))
        for number in range(MAX_FAILURES):
            assert not world.running.done()
            session_id = f"{number:032x}"
            request = Open(session_id, 1, None, TokenIds(PROMPT), NO_TOKENS, Sampling(), NO_TOKENS, 5, True)
            await world.send(world.gateway, request)
            failure = await world.gateway.next(Failure)
            assert (failure.session_id, failure.code, failure.retryable) == (session_id, "internal", True)
        with pytest.raises(ExceptionGroup) as ended:
            await asyncio.wait_for(world.running, 10)
        assert ended.group_contains(RuntimeError, match="failed a probe")


def no_cache(error: Exception) -> Callable[[int], FakeCache]:
    def new_cache(capacity: int) -> FakeCache:
        raise error

    return new_cache
