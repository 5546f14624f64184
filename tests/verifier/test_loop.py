"""The verify loop alone: the content of passes, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from services.cloud_verifier.loop import MAX_FAILURES, VerifyLoop
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from services.cloud_verifier.torch_engine.engine import WARM_UP_TOKENS
from shared.policies.batching import Batcher, PassCost
from shared.protocol.messages import NO_TOKENS, Draft, Open, Sampling, TokenIds, Verdict
from shared.protocol.subjects import new_instance_id
from tests.fakes import FakeTarget, answer, fake_engine
from tests.peers import until

GATEWAY, DRAFTER = new_instance_id("gateway"), new_instance_id("edge")
PROMPT = (5, 6, 7)
POISON = 0  # which no model draws


class Bench:
    """A loop, its table and model, and its answers."""

    def __init__(
        self, token_budget: int = 64, prefill_chunk: int = 16, kv_tokens: int = 1 << 16, max_looked_up: int = 0
    ) -> None:
        self.model = FakeTarget(poison=POISON)
        self.engine = fake_engine(self.model, kv_tokens)
        self.table = SessionTable(self.engine, 64, 1000.0, lambda slot, refusal: None)
        self.registry = CollectorRegistry()
        self.cost = PassCost()
        self.verdicts: dict[str, list[Verdict]] = {}
        self.failed: list[str] = []
        self.loop = VerifyLoop(
            self.engine,
            self.table,
            Batcher(token_budget, prefill_chunk, self.cost),
            self.cost,
            VerifierMetrics(self.registry),
            self._answer,
            self._fail,
            max_looked_up,
        )

    def _answer(self, slot: SessionSlot, verdict: Verdict) -> None:
        self.verdicts.setdefault(slot.state.session_id, []).append(verdict)

    def _fail(self, slot: SessionSlot) -> None:
        self.failed.append(slot.state.session_id)
        self.table.close(slot.state.session_id, slot.state.term, 0.0)

    def open(
        self,
        number: int,
        prompt: tuple[int, ...] = PROMPT,
        max_tokens: int = 10,
        seed: int = 0,
        term: int = 1,
        *,
        lookup: bool = False,
    ) -> SessionSlot:
        request = Open(
            f"{number:032x}",
            term,
            DRAFTER,
            TokenIds(prompt),
            NO_TOKENS,
            Sampling(seed=seed),
            NO_TOKENS,
            max_tokens,
            True,
            lookup=lookup,
        )
        slot = self.table.open(request, GATEWAY, 0.0)
        self.loop.wake()
        return slot

    async def finished(self, *slots: SessionSlot) -> None:
        await until(lambda: all(slot.state.finish for slot in slots))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_verifier_{name}", labels) or 0.0


@asynccontextmanager
async def running(**options: int) -> AsyncIterator[Bench]:
    bench = Bench(**options)
    task = asyncio.create_task(bench.loop.run())
    try:
        yield bench
        assert not task.done()
    finally:
        bench.model.gate.open()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def text_of(slot: SessionSlot) -> list[int]:
    return slot.state.tokens[len(slot.state.request.prompt_ids) :]


async def test_a_session_alone_gets_one_token_a_pass_drawn_with_its_own_sampling() -> None:
    async with running() as bench:
        slot = bench.open(1, max_tokens=5, seed=3)
        await bench.finished(slot)
        assert text_of(slot) == answer(PROMPT, 5, seed=3)
        assert text_of(slot) != answer(PROMPT, 5)
        assert [len(verdict.token_ids) for verdict in bench.verdicts[slot.state.session_id]] == [1] * 5
        assert bench.verdicts[slot.state.session_id][-1].finish == "length"
        assert slot.context is None


async def test_the_next_batch_is_what_arrived_during_the_last_pass() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        first = bench.open(0, prompt=(1, 2, 3))
        await bench.model.gate.held()
        others = [bench.open(number, prompt=(number, 2, 3)) for number in range(1, 8)]
        bench.model.gate.let(1)
        await bench.model.gate.held()
        bench.model.gate.let(1)
        await bench.model.gate.held()
        assert [len(rows) for rows in bench.model.passes] == [1, 8, 8]
        assert bench.loop.batch == 8
        bench.model.gate.open()
        await bench.finished(first, *others)
        for number, slot in enumerate([first, *others]):
            assert text_of(slot) == answer((number or 1, 2, 3), 10)
        assert max(verdict.batch for verdict in bench.verdicts[first.state.session_id]) == 8


async def test_a_short_prompt_gets_its_token_before_a_long_one_that_was_opened_just_before_it() -> None:
    async with running(token_budget=16, prefill_chunk=16) as bench:
        bench.model.gate.shut()
        long, short = bench.open(0, prompt=tuple(range(1, 61))), bench.open(1)
        bench.model.gate.let(1)
        await bench.model.gate.held()
        assert (len(text_of(short)), long.state.computed) == (1, 13)
        bench.model.gate.open()
        await bench.finished(long, short)


async def test_a_guess_that_arrives_during_a_pass_is_in_the_next_one() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        slot = bench.open(1)
        await bench.model.gate.held()
        text = answer(PROMPT, 10)
        draft = Draft(slot.state.session_id, 1, 0, len(PROMPT), TokenIds(text[:4]), True, 0.0)
        assert slot.state.on_draft(draft, 0.0) is None
        bench.model.gate.let(2)
        await bench.model.gate.held()
        first, second = bench.verdicts[slot.state.session_id]
        assert (first.token_ids, first.accepted) == (tuple(text[:1]), 0)
        assert (second.token_ids, second.accepted) == (tuple(text[1:5]), 3)
        assert (second.tally.late, second.tally.accepted) == (1, 3)


async def test_a_long_prompt_is_fed_in_chunks_while_others_get_their_tokens() -> None:
    async with running(prefill_chunk=16) as bench:
        bench.model.gate.shut()
        short = bench.open(1)
        await bench.model.gate.held()
        prompt = tuple(range(1, 51))
        long = bench.open(2, prompt=prompt)
        bench.model.gate.open()
        await bench.finished(short, long)
        assert text_of(long) == answer(prompt, 10)
        assert text_of(short) == answer(PROMPT, 10)
        fed = [[len(row.token_ids) for row in rows] for rows in bench.model.passes]
        assert fed[:6] == [[3], [1, 16], [1, 16], [1, 16], [1, 2], [1, 1]]


async def test_no_pass_is_larger_than_the_budget() -> None:
    async with running(token_budget=10, prefill_chunk=8) as bench:
        bench.model.gate.shut()
        slots = [bench.open(number, prompt=tuple(range(1, 30))) for number in range(4)]
        bench.model.gate.open()
        await bench.finished(*slots)
        assert max(sum(len(row.token_ids) for row in rows) for rows in bench.model.passes) == 10
        assert all(text_of(slot) == answer(range(1, 30), 10) for slot in slots)


async def test_a_failing_pass_costs_only_the_session_at_fault() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        good = bench.open(1)
        await bench.model.gate.held()
        bad, also_good = bench.open(2, prompt=(5, POISON)), bench.open(3, prompt=(7, 8))
        bench.model.gate.open()
        await bench.finished(good, also_good)
        assert text_of(good) == answer(PROMPT, 10)
        assert text_of(also_good) == answer((7, 8), 10)
        assert bench.failed == [bad.state.session_id]
        assert text_of(bad) == []
        assert bench.count("failed_passes_total") == 1


async def test_a_session_that_fails_alone_ends_nothing_but_itself() -> None:
    async with running() as bench:
        bad = bench.open(1, prompt=(POISON,))
        await until(lambda: bench.failed == [bad.state.session_id])
        slot = bench.open(2)
        await bench.finished(slot)
        assert text_of(slot) == answer(PROMPT, 10)


async def fail(bench: Bench, *numbers: int) -> None:
    """Opens sessions that fail, one after the other."""
    for number in numbers:
        num_failed = len(bench.failed)
        bench.open(number, prompt=(bench.model.poison,), term=1 + num_failed)
        await until(lambda num=num_failed: len(bench.failed) > num)


async def test_a_model_that_fails_for_good_ends_the_loop_with_its_error() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.loop.run())
    await fail(bench, *range(1, MAX_FAILURES))
    await bench.finished(bench.open(50))
    await fail(bench, *range(11, 10 + MAX_FAILURES))
    assert not task.done()
    await fail(bench, 99)
    with pytest.raises(RuntimeError, match="failed a probe") as ended:
        await asyncio.wait_for(task, 10)
    assert str(ended.value.__cause__) == "poisoned"


async def test_one_session_that_fails_again_and_again_ends_nothing() -> None:
    async with running() as bench:
        await fail(bench, *[1] * (MAX_FAILURES + 1))
        await bench.finished(bench.open(2))


async def test_failing_sessions_among_good_ones_end_nothing() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        good = bench.open(1, max_tokens=40)
        await bench.model.gate.held()
        for number in range(10, 11 + MAX_FAILURES):
            bench.open(number, prompt=(POISON,))
            bench.model.gate.let(4)  # the good one's, both, and each alone
            await until(lambda num=number: len(bench.failed) == num - 9)
        bench.model.gate.open()
        await bench.finished(good)


async def test_a_text_that_fails_in_many_sessions_while_the_model_computes_others_ends_nothing() -> None:
    async with running() as bench:
        bench.model.poison = 3
        await fail(bench, *range(1, 2 + MAX_FAILURES))
        await bench.finished(bench.open(99))


async def test_the_guesses_of_a_failed_pass_are_discarded() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        slot = bench.open(1)
        slot.state.on_draft(Draft(slot.state.session_id, 1, 0, len(PROMPT), TokenIds((POISON, 4)), True, 0.0), 0.0)
        bench.model.gate.open()
        await until(lambda: bench.failed == [slot.state.session_id])
        assert slot.state.guesses.fates.discarded == 2


async def test_a_failing_pass_of_a_closed_session_does_not_fail_its_successor() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        slot = bench.open(1, prompt=(POISON,))
        await bench.model.gate.held()
        bench.table.close(slot.state.session_id, 1, 0.0)
        successor = bench.open(1, prompt=PROMPT, term=2)
        bench.model.gate.open()
        await bench.finished(successor)
        assert bench.failed == []
        assert text_of(successor) == answer(PROMPT, 10)


async def test_a_session_closed_during_its_pass_gets_no_verdict() -> None:
    async with running() as bench:
        bench.model.gate.shut()
        slot = bench.open(1)
        await bench.model.gate.held()
        bench.table.close(slot.state.session_id, slot.state.term, 0.0)
        other = bench.open(2)
        bench.model.gate.open()
        await bench.finished(other)
        assert slot.state.session_id not in bench.verdicts
        assert bench.engine.free_kv_tokens == bench.engine.info.kv_tokens


async def test_a_session_without_room_starts_when_another_has_finished() -> None:
    async with running(kv_tokens=64) as bench:
        first, second = bench.open(1), bench.open(2)
        assert second.context is None
        await bench.finished(first, second)
        assert text_of(second) == answer(PROMPT, 10)


async def test_warming_up_measures_each_size_when_the_kernels_are_warm() -> None:
    bench = Bench()
    bench.model.poison = None
    before = bench.cost.predict(1, WARM_UP_TOKENS, 0).tolist()
    await bench.loop.warm_up()
    sizes = [len(row.token_ids) for rows in bench.model.passes for row in rows]
    assert sizes == [size for size in WARM_UP_TOKENS for _ in range(2)]
    assert bench.cost.predict(1, WARM_UP_TOKENS, 0).tolist() != before
    assert bench.engine.free_kv_tokens == bench.engine.info.kv_tokens


async def test_queue_and_pass_figures_tell_what_waits_and_what_was_done() -> None:
    async with running(token_budget=64) as bench:
        bench.model.gate.shut()
        bench.open(1)
        await bench.model.gate.held()
        bench.open(2, prompt=tuple(range(1, 30)))
        assert bench.loop.queue_tokens == len(PROMPT) + 29
        assert bench.loop.queue == 0.5
        bench.open(3, prompt=tuple(range(1, 60)))
        assert bench.loop.queue == 1.0
        bench.model.gate.let(1)
        await bench.model.gate.held()
        assert bench.loop.batch == 1
        assert bench.loop.pass_ms > 0
        assert (bench.count("fed_tokens_total"), bench.count("committed_tokens_total")) == (3, 1)


async def test_cancelling_waits_for_the_pass_that_runs() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.loop.run())
    bench.model.gate.shut()
    slot = bench.open(1)
    await bench.model.gate.held()
    bench.model.gate.open()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert bench.verdicts == {} or slot.state.length > len(PROMPT)
    assert len(bench.model.passes[0][0].cache.text) >= len(PROMPT)


def repeating() -> tuple[int, ...]:
    """A prompt behind which the target draws what followed its last two tokens before, and then another token."""
    prompts = ((5, 6, third, fourth, 5, 6) for third in range(1, 97) for fourth in range(1, 97))
    return next(prompt for prompt in prompts if answer(prompt, 2)[0] == prompt[2] and answer(prompt, 2)[1] != prompt[3])


async def test_a_right_guess_from_the_text_saves_a_pass_and_each_is_counted() -> None:
    prompt = repeating()
    async with running(max_looked_up=3) as bench:
        slot = bench.open(1, prompt, max_tokens=4, lookup=True)
        await bench.finished(slot)
        assert text_of(slot) == answer(prompt, 4)
        first, *others = bench.verdicts[slot.state.session_id]
        assert (len(first.token_ids), first.accepted, first.looked_up) == (2, 0, 1)
        assert [len(verdict.token_ids) for verdict in others] == [1, 1]
        assert others[-1].tally.looked_up == 1
        fates = {fate: bench.count("lookup_guesses_total", fate=fate) for fate in ("accepted", "rejected", "discarded")}
        assert fates == {"accepted": 1, "rejected": 1, "discarded": 1}


async def test_a_session_that_may_not_look_up_and_a_verifier_without_room_for_it_do_not() -> None:
    prompt = repeating()
    for most, lookup in ((3, False), (0, True)):
        async with running(max_looked_up=most) as bench:
            slot = bench.open(1, prompt, max_tokens=4, lookup=lookup)
            await bench.finished(slot)
            assert text_of(slot) == answer(prompt, 4)
            assert len(bench.verdicts[slot.state.session_id]) == 4


async def test_guesses_of_a_match_that_was_often_wrong_in_the_session_are_bought_no_more() -> None:
    prompt, fed = repeating(), {}
    for num_wrong in (0, 500):
        async with running(max_looked_up=3) as bench:
            for _ in range(200):
                bench.cost.observe(1, 1, 6, 1.0)
                bench.cost.observe(1, 8, 6, 1.7)
            slot = bench.open(1, prompt, max_tokens=4, lookup=True)
            for match in (2, 3, 4) * num_wrong:
                slot.state.own_guesses.chances.observe(match, 0, is_wrong=True)
            await bench.finished(slot)
            fed[num_wrong] = [sum(len(row.token_ids) for row in rows) for rows in bench.model.passes]
    assert fed == {0: [len(prompt) + 3, 1, 1], 500: [len(prompt), 1, 1, 1]}
