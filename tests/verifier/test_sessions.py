"""The verifier's session table: admission, leases, tombstones."""

from __future__ import annotations

import pytest
import torch
from msgspec import structs

from services.cloud_verifier.sessions import SessionSlot, SessionTable
from shared.policies.kv_cache import KV_STEP
from shared.protocol.messages import NO_TOKENS, Bias, Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.refusal import Refused
from shared.protocol.subjects import new_instance_id
from tests.fakes import VOCABULARY, FakeCache, FakeTarget, answer, fake_engine

GATEWAY, OTHER_GATEWAY, DRAFTER = (new_instance_id(name) for name in ("gateway", "other", "edge"))
LEASE_MS = 1000.0
STEP = KV_STEP
PROMPT = (5, 6, 7)


def session_id(number: int) -> str:
    return f"{number:032x}"


def opening(
    number: int = 1, term: int = 1, max_tokens: int = 20, committed: tuple[int, ...] = (), prompt: tuple = PROMPT
) -> Open:
    prompt_ids, committed_ids = TokenIds(prompt), TokenIds(committed)
    return Open(
        session_id(number), term, DRAFTER, prompt_ids, committed_ids, Sampling(), NO_TOKENS, max_tokens, True
    )  # fmt: skip


class Table(SessionTable):
    """A table for `num_caches` sessions of up to STEP tokens. `broken`: the error of creating a cache."""

    def __init__(self, num_caches: int = 2, max_sessions: int = 10, spare: int = 0) -> None:
        self.broken: Exception | None = None
        self.refused: list[tuple[SessionSlot, Refused]] = []
        model = FakeTarget()
        make, model.new_cache = model.new_cache, lambda capacity: self._made(capacity)
        self._make = make
        self.engine = fake_engine(model, num_caches * STEP + spare)
        super().__init__(self.engine, max_sessions, LEASE_MS, lambda *refused: self.refused.append(refused))

    def _made(self, capacity: int) -> FakeCache:
        if self.broken is not None:
            raise self.broken
        return self._make(capacity)

    def opens(self, number: int, now: float = 0.0, **options: object) -> SessionSlot:
        return self.open(opening(number, **options), GATEWAY, now)

    def waiting(self) -> list[str]:
        return [slot.state.session_id for slot in self if slot.context is None]


def commit(slot: SessionSlot, num_tokens: int) -> None:
    """Runs passes until the session has committed `num` tokens."""
    text = answer(PROMPT, num_tokens)
    for token in text:
        row = slot.state.begin_pass(64, 0)
        slot.state.end_pass(row, [token], PassInfo(), now=0.0)


def test_sessions_get_caches_while_there_is_room_and_wait_when_there_is_none() -> None:
    table = Table(num_caches=2)
    for number in (1, 2, 3):
        table.opens(number)
    assert table.waiting() == [session_id(3)]
    assert table.engine.free_kv_tokens == 0
    assert [slot.state.session_id for slot in table.ready()] == [session_id(1), session_id(2)]


def test_a_reservation_holds_prompt_and_answer_in_whole_steps() -> None:
    table = Table(num_caches=4)
    exact = table.opens(1, max_tokens=STEP - len(PROMPT))
    larger = table.opens(2, max_tokens=STEP - len(PROMPT) + 1)
    assert (exact.context.capacity, larger.context.capacity) == (STEP, 2 * STEP)
    assert table.engine.free_kv_tokens == STEP


def test_waiting_sessions_are_admitted_in_the_order_of_their_opening() -> None:
    table = Table(num_caches=2)
    for number in (1, 2, 3, 4):
        table.opens(number)
    table.close(session_id(2), 1, now=0.0)
    assert table.waiting() == [session_id(4)]
    table.close(session_id(1), 1, now=0.0)
    assert table.waiting() == []


def test_a_small_session_does_not_overtake_a_large_one_that_waits() -> None:
    table = Table(num_caches=3)
    table.opens(1)
    table.opens(2)
    table.opens(3, max_tokens=STEP)
    table.opens(4)
    assert table.waiting() == [session_id(3), session_id(4)]
    assert table.engine.free_kv_tokens == STEP
    table.close(session_id(1), 1, now=0.0)
    assert table.waiting() == [session_id(4)]


def test_a_finished_session_gives_its_cache_to_the_next_and_keeps_its_text() -> None:
    table = Table(num_caches=1)
    first, second = table.opens(1, max_tokens=2), table.opens(2)
    assert second.context is None
    commit(first, 2)
    table.settle(first)
    assert first.context is None
    assert second.context is not None
    assert first.state.tokens[len(PROMPT) :] == answer(PROMPT, 2)
    assert table.find(session_id(1)) is first
    assert table.num_active == 1


def test_reservations_add_up_again_when_all_sessions_are_over() -> None:
    table = Table(num_caches=3)
    for number in range(1, 6):
        slot = table.opens(number, max_tokens=2)
        if slot.context is not None:
            commit(slot, 2)
            table.settle(slot)
    for number in range(1, 6):
        table.close(session_id(number), 1, now=0.0)
    assert table.engine.free_kv_tokens == table.engine.info.kv_tokens
    assert len(table) == 0


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (opening(prompt=()), "bad_request", "empty"),
        (opening(prompt=(1, VOCABULARY)), "bad_request", f"token id {VOCABULARY}"),
        (opening(committed=(VOCABULARY,)), "bad_request", f"token id {VOCABULARY}"),
        (opening(max_tokens=1022), "too_long", "1025 tokens exceed the context of 1024"),
        (opening(max_tokens=STEP), "too_long", f"{STEP + 3} tokens don't fit the KV cache of {STEP}"),
    ],
)
def test_what_can_never_be_served_is_refused_for_good(request_: Open, code: str, message: str) -> None:
    table = Table(num_caches=1)
    with pytest.raises(Refused, match=message) as refused:
        table.open(request_, GATEWAY, 0.0)
    assert (refused.value.code, refused.value.retryable) == (code, False)
    assert len(table) == 0


def test_more_sessions_than_allowed_are_refused_for_now() -> None:
    table = Table(max_sessions=2)
    table.opens(1)
    table.opens(2)
    with pytest.raises(Refused, match="all 2 sessions") as refused:
        table.opens(3)
    assert (refused.value.code, refused.value.retryable) == ("overloaded", True)
    table.opens(1, now=5.0)


def test_utilisation_is_1_when_a_further_session_would_have_to_wait() -> None:
    table = Table(num_caches=4, max_sessions=10)
    assert (table.occupancy.utilization, table.occupancy.capacity) == (0, 10)
    table.opens(1)
    assert (table.occupancy.utilization, table.occupancy.capacity) == (1 / 4, 4)
    for number in (2, 3, 4):
        table.opens(number)
    assert (table.occupancy.utilization, table.occupancy.kv_usage) == (1, 1)
    table.opens(5)
    full = table.occupancy
    assert (full.num_running, full.num_waiting, full.capacity, full.utilization) == (4, 1, 4, 5 / 4)


def test_utilisation_counts_places_where_they_are_fewer_than_the_kv_cache_holds() -> None:
    table = Table(num_caches=8, max_sessions=2)
    table.opens(1)
    table.opens(2)
    assert (table.occupancy.capacity, table.occupancy.utilization) == (2, 1)


def test_opening_the_same_term_again_changes_nothing_but_the_lease() -> None:
    table = Table()
    slot = table.opens(1)
    commit(slot, 3)
    again = table.opens(1, now=900.0)
    assert again is slot
    assert slot.state.length == len(PROMPT) + 3
    assert table.expire(now=1500.0) == []


def test_a_lower_term_does_not_rebind() -> None:
    table = Table()
    table.opens(1, term=5)
    assert table.opens(1, term=4).state.term == 5


def test_a_higher_term_keeps_the_cache_where_it_is_large_enough() -> None:
    table = Table()
    slot = table.opens(1)
    commit(slot, 3)
    cache = slot.context
    table.opens(1, term=2, committed=tuple(answer(PROMPT, 3)))
    assert slot.state.term == 2
    assert slot.context is cache
    assert slot.state.computed == len(PROMPT) + 2


def test_a_higher_term_with_a_longer_answer_keeps_the_cache_until_the_text_outgrows_it() -> None:
    table = Table(num_caches=4)
    slot = table.opens(1)
    commit(slot, 3)
    table.opens(1, term=2, max_tokens=STEP, committed=tuple(answer(PROMPT, 3)))
    slot.state.guesses.pending = [8] * (STEP - len(PROMPT) - 4)
    table.prepare_pass()
    assert slot.context.capacity == STEP
    slot.state.guesses.pending.append(8)
    table.prepare_pass()
    assert slot.context.capacity == 2 * STEP
    assert slot.state.computed == len(PROMPT) + 2
    assert table.engine.free_kv_tokens == 2 * STEP


def test_a_session_that_is_finished_when_it_is_opened_takes_no_cache() -> None:
    table = Table(num_caches=1)
    slot = table.opens(1, max_tokens=2, committed=tuple(answer(PROMPT, 2)))
    assert slot.state.finish == "length"
    assert slot.context is None
    assert table.opens(2).context is not None


def test_another_gateway_can_not_take_a_session_over() -> None:
    table = Table()
    slot = table.opens(1)
    with pytest.raises(Refused, match="another gateway") as refused:
        table.open(opening(1, term=2), OTHER_GATEWAY, 0.0)
    assert not refused.value.retryable
    assert (slot.state.term, slot.state.gateway_id) == (1, GATEWAY)


def test_a_gateway_silent_for_a_lease_loses_its_sessions_only() -> None:
    table = Table(num_caches=2)
    table.opens(1)
    table.open(opening(2), OTHER_GATEWAY, 0.0)
    waiting = table.open(opening(3), OTHER_GATEWAY, 0.0)
    table.renew(OTHER_GATEWAY, now=900.0)
    assert table.expire(now=LEASE_MS) == []
    assert [slot.state.session_id for slot in table.expire(now=LEASE_MS + 1)] == [session_id(1)]
    assert waiting.context is not None
    assert [slot.state.session_id for slot in table.expire(now=900.0 + LEASE_MS + 1)] == [session_id(2), session_id(3)]
    assert table.engine.free_kv_tokens == table.engine.info.kv_tokens


def test_a_gateway_s_heartbeat_renews_no_finished_session() -> None:
    table = Table(num_caches=2, max_sessions=2)
    running, finished = table.opens(1), table.opens(2, max_tokens=2)
    commit(finished, 2)
    table.settle(finished)
    table.renew(GATEWAY, now=900.0)
    assert table.expire(now=LEASE_MS) == []
    assert table.expire(now=LEASE_MS + 1) == [finished]
    assert list(table) == [running]
    table.opens(3, now=LEASE_MS + 1)


NO_MEMORY = (MemoryError(), OSError(12, "Cannot allocate memory"), torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_session_for_whose_cache_there_is_no_memory_is_refused_for_now_and_reserves_nothing(error: Exception) -> None:
    table = Table(num_caches=2)
    first, table.broken = table.opens(1), error
    for _ in range(3):
        slot = table.opens(2)
    assert list(table) == [first]
    assert table.engine.free_kv_tokens == STEP
    refusals = [(slot.state.session_id, refusal.code, refusal.retryable) for slot, refusal in table.refused]
    assert refusals == [(session_id(2), "overloaded", True)] * 3
    table.broken = None
    assert table.opens(2).context is not None
    assert (slot.context, table.engine.free_kv_tokens) == (None, 0)


def test_no_memory_when_its_turn_comes_costs_a_waiting_session_and_not_the_one_that_ended() -> None:
    table = Table(num_caches=1)
    first, second, third = (table.opens(number, max_tokens=2) for number in (1, 2, 3))
    commit(first, 2)
    table.broken = MemoryError()
    table.settle(first)
    assert [slot for slot, _ in table.refused] == [second, third]
    assert (list(table), table.engine.free_kv_tokens) == ([first], table.engine.info.kv_tokens)


def test_a_rebinding_with_another_text_for_whose_cache_there_is_no_memory_is_refused() -> None:
    table = Table(num_caches=3)
    slot = table.opens(1)
    row = slot.state.begin_pass(64, 0)
    table.broken = MemoryError()
    table.opens(1, term=2, prompt=(7, 6))
    assert [(refused, refused.state.term) for refused, _ in table.refused] == [(slot, 2)]
    assert slot.state.end_pass(row, [8], PassInfo(), now=0.0) is None
    assert table.engine.free_kv_tokens == table.engine.info.kv_tokens


def test_a_prefix_that_was_not_copied_for_want_of_memory_is_not_counted() -> None:
    table, prompt = Table(num_caches=2), tuple(range(1, 41))
    scoped = [structs.replace(opening(number, prompt=prompt, max_tokens=1), cache_scope="s") for number in (1, 2)]
    slot = table.open(scoped[0], GATEWAY, 0.0)
    slot.state.end_pass(slot.state.begin_pass(64, 0), [8], PassInfo(), now=0.0)
    table.settle(slot)
    table.broken = MemoryError()
    table.open(scoped[1], GATEWAY, 0.0)
    assert table.engine.num_shared_tokens == 0
    table.broken = None
    table.open(scoped[1], GATEWAY, 0.0)
    assert table.engine.num_shared_tokens == len(prompt) - 1


def test_a_cache_that_fails_for_another_reason_is_the_model_s_fault() -> None:
    table = Table()
    table.broken = RuntimeError("device-side assert triggered")
    table.opens(1)
    ((_, refusal),) = table.refused
    assert (refusal.code, refusal.retryable, len(table)) == ("internal", True, 0)
    assert table.engine.free_kv_tokens == table.engine.info.kv_tokens


@pytest.mark.parametrize("spare", [0, 1, STEP - 1])
def test_the_longest_context_promised_is_taken_and_nothing_longer(spare: int) -> None:
    table = Table(num_caches=1, spare=spare)
    assert table.max_context == STEP
    assert table.opens(1, max_tokens=table.max_context - len(PROMPT)).context is not None
    with pytest.raises(Refused, match=f"{STEP + 1} tokens don't fit the KV cache of {STEP}"):
        table.opens(2, max_tokens=table.max_context - len(PROMPT) + 1)


def test_a_closed_session_leaves_a_tombstone_for_one_lease() -> None:
    table = Table()
    table.opens(1)
    table.close(session_id(1), 1, now=100.0)
    for ask in (lambda: table.find(session_id(1)), lambda: table.opens(1, term=1, now=200.0)):
        with pytest.raises(Refused, match="closed") as refused:
            ask()
        assert (refused.value.code, refused.value.retryable) == ("closed", False)
    table.expire(now=100.0 + LEASE_MS - 1)
    with pytest.raises(Refused, match="closed"):
        table.find(session_id(1))
    table.expire(now=100.0 + LEASE_MS)
    with pytest.raises(Refused) as forgotten:
        table.find(session_id(1))
    assert (forgotten.value.code, forgotten.value.retryable) == ("unknown_session", True)


def test_a_higher_term_opens_a_closed_session_again() -> None:
    table = Table()
    table.opens(1)
    table.close(session_id(1), 2, now=100.0)
    with pytest.raises(Refused, match="closed"):
        table.opens(1, term=2, now=200.0)
    assert table.opens(1, term=3, now=200.0).state.term == 3
    assert table.find(session_id(1)).context is not None


def test_a_session_that_was_never_opened_is_unknown_and_closing_it_does_nothing() -> None:
    table = Table()
    assert table.close(session_id(9), 1, now=0.0) is None
    with pytest.raises(Refused) as refused:
        table.find(session_id(9))
    assert (refused.value.code, refused.value.retryable) == ("unknown_session", True)


def test_closing_during_a_pass_voids_it_and_discards_every_guess() -> None:
    table = Table()
    slot = table.opens(1)
    commit(slot, 1)
    slot.state.guesses.pending = [8, 9, 10]
    row = slot.state.begin_pass(64, 1)
    assert (len(row.guesses), len(slot.state.guesses.pending)) == (2, 1)
    table.close(session_id(1), 1, now=0.0)
    assert slot.state.guesses.fates.discarded == 3
    assert slot.state.end_pass(row, [8, 9], PassInfo(), now=0.0) is None
    assert table.engine.free_kv_tokens == table.engine.info.kv_tokens


def test_a_draining_table_has_no_capacity_and_is_full() -> None:
    table = Table(max_sessions=4)
    table.opens(1)
    table.draining = True
    assert (table.occupancy.num_running, table.occupancy.capacity, table.occupancy.utilization) == (1, 0, 1)


def test_a_draining_table_takes_no_new_session_but_serves_its_own() -> None:
    table = Table()
    slot = table.opens(1)
    table.draining = True
    with pytest.raises(Refused) as refused:
        table.opens(2)
    assert (refused.value.code, refused.value.retryable) == ("draining", True)
    table.opens(1, term=2)
    assert slot.state.term == 2
    assert table.num_active == 1


def test_a_failure_names_the_session_and_term_of_the_request() -> None:
    failure = Refused("overloaded", "x" * 3000, retryable=True).failure(session_id(1), 7)
    assert (failure.session_id, failure.term, failure.code, failure.retryable) == (session_id(1), 7, "overloaded", True)
    assert len(failure.message) == 1024


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"sampling": Sampling(logit_bias=(Bias(VOCABULARY, 1.0),))}, f"token id {VOCABULARY} is outside"),
        ({"stop_ids": TokenIds((VOCABULARY,)), "min_tokens": 2}, f"token id {VOCABULARY} is outside"),
        ({"min_tokens": 21}, "min_tokens 21 exceeds max_tokens 20"),
    ],
)
def test_options_that_the_model_cannot_honour_are_refused_by_name(asked: dict, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        Table().open(structs.replace(opening(), **asked), GATEWAY, 0.0)
    assert (refused.value.code, refused.value.retryable) == ("bad_request", False)


def test_a_stop_id_outside_the_vocabulary_is_harmless_without_min_tokens() -> None:
    assert Table().open(structs.replace(opening(), stop_ids=TokenIds((VOCABULARY,))), GATEWAY, 0.0).context is not None
