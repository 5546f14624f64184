"""Sessions reserve KV cache for what is likely; their contexts grow, and the youngest give theirs up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

from services.cloud_verifier.loop import PassShare
from services.cloud_verifier.sessions import SessionSlot
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS
from shared.policies.kv_cache import KV_AHEAD, KV_STEP, likely_kv_tokens
from shared.protocol.messages import Sampling, TokenIds
from tests.fakes import FakeTarget, answer, fake_engine, next_token, wrong
from tests.verifier.pass_by_pass import PROMPT, PassByPass, answer_of, number_of
from tests.verifier.test_sessions import NO_MEMORY

DEFAULT_KV_TOKENS = 32768
FIRST = likely_kv_tokens(len(PROMPT), KV_AHEAD)  # what a session with a long answer reserves at first
NEXT = likely_kv_tokens(FIRST, KV_AHEAD)  # and when its text has reached the end of that
LONG = FIRST + 10  # tokens of an answer that outgrows the first reservation


def a_table(kv_tokens: int, max_context: int = 2048) -> PassByPass:
    return PassByPass(fake_engine(FakeTarget(max_context=max_context), kv_tokens))


def assert_right(*slots: SessionSlot) -> None:
    for slot in slots:
        request = slot.state.request
        assert answer_of(slot) == answer(request.prompt_ids, request.max_tokens, request.sampling.seed)


def test_sessions_without_max_tokens_do_not_fill_a_verifier() -> None:
    table, prompt = a_table(DEFAULT_KV_TOKENS, max_context=8192), range(1, 97)
    slots = [table.opens(number, 8192 - len(prompt), prompt) for number in range(60)]
    assert all(slot.context is not None for slot in slots)
    assert table.free_kv_tokens == DEFAULT_KV_TOKENS - 60 * likely_kv_tokens(len(prompt), KV_AHEAD)


def test_a_context_grows_with_the_text_and_nothing_is_computed_twice() -> None:
    table = a_table(4096)
    slot = table.opens(1, 900)
    capacities = set()
    while slot.context is not None:
        capacities.add(slot.context.capacity)
        assert slot.context.capacity <= likely_kv_tokens(slot.state.length, KV_AHEAD)
        table.run_pass()
        table.check()
    assert_right(slot)
    assert len(capacities) == 4
    assert max(capacities) == 960, "no more than prompt and max_tokens"
    assert (table.num_fed, table.num_preemptions) == (len(PROMPT) + 899, 0)
    assert table.engine.free_kv_tokens == 4096


def test_a_context_grows_for_guesses_that_do_not_fit() -> None:
    table = a_table(4096)
    slot = table.opens(1, 600)
    right = answer(PROMPT, 600)
    while slot.state.finish is None:
        known = slot.state.length + len(slot.state.guesses.pending) - len(PROMPT)
        table.guess(slot, right[known : known + 64])
        table.run_pass()
        table.check()
    assert_right(slot)
    assert slot.state.tally.accepted > 400


def test_the_youngest_gives_its_kv_cache_to_the_oldest_and_waits() -> None:
    table = a_table(3 * FIRST)
    slots = [table.opens(number, LONG + KV_AHEAD) for number in (1, 2, 3)]
    table.finish(slots[0])
    assert table.told[:2] == [(3, False), (2, False)]
    assert 1 not in dict(table.told), "the oldest keeps its own"
    table.finish(*slots)
    assert_right(*slots)
    assert table.num_preemptions == sum(not has_room for _, has_room in table.told) >= 2
    assert dict(table.told) == {2: True, 3: True}
    assert table.engine.free_kv_tokens == 3 * FIRST


def test_a_session_that_can_not_grow_waits_itself_where_none_is_younger() -> None:
    table = a_table(2 * FIRST)
    old, young = table.opens(1, LONG, prompt=(8, 9)), table.opens(2, LONG)
    table.guess(young, answer(PROMPT, 64))
    while young.context is not None:
        table.run_pass()
    assert old.context is not None
    assert old.context.capacity == FIRST
    assert table.told == [(2, False)]
    table.finish(young)
    assert_right(old, young)


def test_what_is_left_of_a_preempted_context_does_not_go_back_to_its_session() -> None:
    """It would be computed again only to be taken away again."""
    table = a_table(2 * FIRST + KV_STEP)
    old, young = table.opens(1, LONG + KV_AHEAD), table.opens(2, LONG)
    while young.context is not None:
        table.run_pass()
    while old.state.finish is None:
        assert young.context is None
        table.run_pass()
    assert young.context is not None
    assert table.num_preemptions == 1
    table.finish(young)
    assert_right(old, young)


def test_a_waiting_session_goes_before_a_new_one() -> None:
    table = a_table(2 * FIRST)
    old, young = table.opens(1, LONG), table.opens(2, LONG)
    while young.context is not None:
        table.run_pass()
    new = table.opens(3, 20)
    assert (table.free_kv_tokens, new.context) == (0, None)
    table.finish(old)
    assert young.context is not None
    table.finish(young, new)
    assert_right(old, young, new)


def test_guesses_that_wait_with_a_preempted_session_are_verified_when_it_goes_on() -> None:
    table = a_table(2 * FIRST)
    old, young = table.opens(1, LONG), table.opens(2, LONG)
    while young.context is not None:
        table.run_pass()
    num_known = young.state.length - len(PROMPT)
    table.guess(young, answer(PROMPT, LONG)[num_known:][:8])
    table.finish(old)
    assert young.state.length == len(PROMPT) + num_known
    table.finish(young)
    assert_right(young)
    fates = young.state.guesses.fates
    assert (fates.accepted, fates.rejected, fates.late, fates.discarded) == (8, 0, 0, 0)


def test_many_sessions_that_run_to_their_limit_all_end() -> None:
    """The oldest never loses its KV cache, and each session is computed again a few times at most."""
    table = a_table(1024)
    slots = [table.opens(number, 1024 - len(PROMPT), sampling=Sampling(seed=number)) for number in range(8)]
    oldest_first = list(slots)
    while oldest_first:
        oldest = oldest_first[0]
        assert oldest.context is not None
        assert number_of(oldest) in table.run_pass()
        table.check()
        if oldest.state.finish:
            oldest_first.remove(oldest)
    assert_right(*slots)
    assert [number for number, has_room in table.told if number == 0] == []
    assert 0 < table.num_preemptions <= 3 * len(slots)
    assert (len(table.refused), table.engine.free_kv_tokens) == (0, 1024)


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*arguments: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_session_for_whose_growth_there_is_no_memory_is_refused_and_the_others_go_on(error: Exception) -> None:
    model = FakeTarget()
    table, make = PassByPass(fake_engine(model, 4096)), model.new_cache
    growing = table.opens(1, LONG)
    for _ in range(KV_AHEAD):
        table.run_pass()
    other = table.opens(2, 200)
    model.new_cache = failing(error)
    while growing.context is not None:
        table.run_pass()
    model.new_cache = make
    ((number, refusal),) = table.refused
    assert (number, refusal.code, refusal.retryable) == (1, "overloaded", True)
    assert growing not in list(table)
    assert growing.state.finish is None
    table.finish(other)
    assert_right(other)
    assert (table.engine.free_kv_tokens, table.num_preemptions) == (4096, 0)
    again = table.opens(1, LONG, committed_ids=TokenIds(answer_of(growing)))
    table.finish(again)
    assert_right(again)


def test_a_growth_that_fails_for_another_reason_is_the_model_s_fault() -> None:
    table = a_table(4096)
    growing = table.opens(1, LONG)
    table.engine.grow = failing(RuntimeError("device-side assert triggered"))
    while not table.refused:
        table.run_pass()
    assert [(number, refusal.code) for number, refusal in table.refused] == [(1, "internal")]
    assert growing.context is None
    assert table.engine.free_kv_tokens == 4096


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_kept_caches_give_way_to_growing_contexts() -> None:
    table = a_table(2 * FIRST)
    ended = table.opens(1, 200, prompt=(1, 2, 3), cache_scope="a")
    table.finish(ended)
    assert table.engine.prefixes.reserved == likely_kv_tokens(3, 200)
    slot = table.opens(2, LONG + KV_AHEAD, cache_scope="a")
    assert table.engine.prefixes.reserved > 0
    table.finish(slot)
    table.check()
    assert_right(slot)
    assert table.num_preemptions == 0


def test_a_preempted_session_takes_its_own_prefix_up_again_while_it_is_kept() -> None:
    table = a_table(2 * FIRST)
    old, young = table.opens(1, 310, prompt=(8, 9)), table.opens(2, LONG, cache_scope="a")
    table.guess(young, answer(PROMPT, 64))
    while young.context is not None:
        table.run_pass()
    assert table.engine.prefixes.reserved == FIRST
    num_known = young.state.length - 1
    table.finish(old)
    assert young.state.computed == num_known, "nothing is computed again"
    table.finish(young)
    assert_right(old, young)


def test_a_context_that_copies_from_one_that_grows_copies_from_where_the_tokens_are() -> None:
    table, prompt = a_table(4096), [*range(1, KV_STEP)]
    source = table.opens(1, 1, prompt, cache_scope="a")
    batch = table.begin_pass()
    twin = table.opens(2, LONG, prompt, cache_scope="a")
    table.opens(1, LONG, prompt, term=2, cache_scope="a")
    assert (twin.context.source, source.context.capacity) == (source.context, KV_STEP)
    small = source.context.cache
    table.end_pass(batch)
    rows = table.begin_pass()
    assert (source.context.capacity, len(rows)) == (likely_kv_tokens(KV_STEP, KV_AHEAD), 2)
    assert source.context.prefix.cache is small
    assert twin.context.prefix.cache is small
    table.end_pass(rows)
    assert table.engine.num_shared_tokens == len(prompt) - 1
    table.finish(source, twin)
    assert_right(source, twin)


def test_a_context_that_has_yet_to_copy_a_prefix_copies_it_into_its_larger_cache() -> None:
    table, prompt = a_table(4096), [*range(1, KV_STEP)]
    table.finish(table.opens(1, 1, prompt, cache_scope="a"))
    slot = table.opens(2, 1, prompt, cache_scope="a")
    kept = slot.context.prefix.cache
    table.opens(2, LONG, prompt, term=2, cache_scope="a")
    table.guess(slot, answer(prompt, 8))
    table.prepare_pass()
    assert slot.context.prefix.cache is kept
    assert slot.context.capacity > KV_STEP
    table.finish(slot)
    assert_right(slot)


# --- random schedules ------------------------------------------------------------------------------------------------


@dataclass
class Schedule:
    """Gateways and drafters that do anything at any time, also during passes."""

    rng: random.Random
    ended: list[SessionSlot] = field(default_factory=list)
    num_opened: int = 0

    def __post_init__(self) -> None:
        self.table = a_table(self.rng.choice([640, 1024]), max_context=640)
        self.terms: dict[int, int] = {}

    def open(self) -> None:
        self.num_opened += 1
        self.terms[self.num_opened] = 1
        self.table.opens(self.num_opened, **self._request())

    def _request(self) -> dict[str, Any]:
        rng = self.rng
        length = rng.choice([3, MIN_TOKENS + 5, 60, 200])
        return {
            "prompt": [rng.choice([7, 8]), *range(1, 20), *([rng.randrange(1, 3)] * length)][:length],
            "max_tokens": rng.choice([1, 50, 300, 400, 400]),
            "cache_scope": rng.choice([None, "a", "a"]),
            "sampling": Sampling(seed=rng.randrange(2)),
        }

    def some(self) -> SessionSlot | None:
        alive = [slot for slot in self.table if slot.state.finish is None]
        return self.rng.choice(alive) if alive else None

    def rebind(self) -> None:
        """Goes on with the answer, with another max_tokens, or with another text."""
        if (slot := self.some()) is None:
            return
        number, request = number_of(slot), slot.state.request
        self.terms[number] += 1
        known = answer_of(slot)[: self.rng.randrange(1 + len(answer_of(slot)))]
        same = {name: getattr(request, name) for name in ("prompt_ids", "sampling", "cache_scope")}
        prompt = same.pop("prompt_ids")
        if self.rng.random() < 0.3:
            other = self._request()
            other["prompt"].append(20 + self.terms[number] % 60)  # no earlier prompt ends so
            self.table.opens(number, term=self.terms[number], **other)
        else:
            most = max(len(answer_of(slot)) + 1, self.rng.choice([request.max_tokens, 400]))
            self.table.opens(number, most, prompt, self.terms[number], committed_ids=TokenIds(known), **same)

    def close(self) -> None:
        if (slot := self.some()) is not None:
            self.table.close(slot.state.session_id, self.terms[number_of(slot)], 0.0)

    def draft(self) -> None:
        """Guesses that follow what the drafter knows; some are wrong."""
        if (slot := self.some()) is None:
            return
        text = [*slot.state.tokens, *slot.state.guesses.pending]
        guesses = []
        for _ in range(self.rng.randrange(1, 65)):
            right = next_token([*text, *guesses], slot.state.request.sampling.seed)
            guesses.append(right if self.rng.random() < 0.97 else wrong(right))
        self.table.guess(slot, guesses)

    def disturb(self) -> None:
        acts = [self.open, self.open, self.rebind, self.close, *[self.draft] * 3]
        for _ in range(self.rng.randrange(2)):
            self.rng.choice(acts)()
            self.table.check()

    def run_pass(self) -> None:
        before = {slot: slot.context for slot in self.table}
        batch = self.table.begin_pass()
        self._check_victims(before)
        self.disturb()
        self._end_pass(batch)

    def _end_pass(self, batch: list[PassShare]) -> None:
        self.table.end_pass(batch)
        self.table.check()
        for slot in [slot for slot in self.table if slot.state.finish]:
            self.ended.append(slot)
            self.table.close(slot.state.session_id, self.terms[number_of(slot)], 0.0)

    def _check_victims(self, before: dict[SessionSlot, object]) -> None:
        """Of the sessions with contexts, the youngest have lost theirs."""
        had = [slot for slot in self.table if before.get(slot) is not None]
        lost = [slot for slot in had if slot.context is None]
        assert lost == had[len(had) - len(lost) :]
        assert not had or had[0].context is not None

    def end(self) -> None:
        """Lets all sessions run to their end."""
        num_passes = 0
        while len(self.table):
            batch = self.table.begin_pass()
            assert batch, "no session is ready"
            self._end_pass(batch)
            num_passes += 1
            assert num_passes < 50_000, "sessions wait for ever"


def test_whatever_gateways_and_drafters_do_reservations_fit_and_texts_are_the_target_s() -> None:
    num_preemptions = num_ended = 0
    for seed in range(8):
        schedule = Schedule(random.Random(seed))
        for _ in range(200):
            schedule.disturb()
            schedule.run_pass()
        schedule.end()
        assert_right(*schedule.ended)
        assert not schedule.table.refused
        assert schedule.table.engine.free_kv_tokens == schedule.table.engine.info.kv_tokens
        num_preemptions += schedule.table.num_preemptions
        num_ended += len(schedule.ended)
    assert num_preemptions > 20
    assert num_ended > 150
