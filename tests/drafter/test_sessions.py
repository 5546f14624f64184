"""The drafter's table: common steps and fair turns, refusals, rebinding, windows of requests."""

from __future__ import annotations

import pytest

from awc.policy import WindowChoice
from services.edge_drafter.sessions import DraftSessions, SessionSlot, steer
from shared.protocol.messages import NO_TOKENS, Sampling, Speculate, Speculation, TokenIds
from shared.protocol.refusal import Refused
from tests.fakes import VOCABULARY, FakeDraft

GATEWAY, OTHER_GATEWAY = "gateway.0123456789ab", "other.0123456789ab"
VERIFIER = "cloud.0123456789ab"
CHOICE = WindowChoice(8, 2, True)
PROMPT = (5, 6, 7)
FEED = 16


def request(
    number: int = 1,
    prompt: tuple[int, ...] = PROMPT,
    max_tokens: int = 100,
    term: int = 1,
    committed: tuple[int, ...] = (),
    speculation: Speculation = Speculation(),  # noqa: B008  frozen
    min_tokens: int = 0,
) -> Speculate:
    return Speculate(
        f"{number:032x}", term, VERIFIER, TokenIds(prompt), TokenIds(committed), Sampling(), NO_TOKENS, max_tokens,
        speculation, min_tokens,
    )  # fmt: skip


class Table(DraftSessions):
    def __init__(self, max_sessions: int = 10, max_rows: int = 16) -> None:
        super().__init__(FakeDraft(max_rows=max_rows), max_sessions)

    def start(self, number: int = 1, choice: WindowChoice = CHOICE, **options: object) -> SessionSlot:
        return self.speculate(request(number, **options), GATEWAY, choice, 0.0)

    def turn(self) -> dict[int, int]:
        """One draft step: the tokens fed of each session in it, by the session's number."""
        shares = self.begin_step(FEED)
        for share in shares:
            share.slot.state.end_step(share.step, 1)
        return {int(share.slot.state.session_id, 16): len(share.step.fed_ids) for share in shares}


def test_sessions_read_their_prompts_in_turn_and_then_step_together() -> None:
    table = Table()
    for number in (1, 2, 3):
        table.start(number)
    assert [table.turn() for _ in range(5)] == [{1: 3}, {2: 3}, {3: 3}, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 1}]


def test_sessions_of_a_model_that_takes_one_row_take_turns() -> None:
    table = Table(max_rows=1)
    for number in (1, 2, 3):
        table.start(number)
    assert [list(table.turn()) for _ in range(7)] == [[1], [2], [3], [1], [2], [3], [1]]


def test_a_long_prompt_delays_other_sessions_by_one_chunk_at_most() -> None:
    table = Table()
    table.start(1, prompt=tuple(range(1, 80)))
    table.start(2)
    table.start(3)
    assert [table.turn() for _ in range(7)] == [
        {2: 3},
        {3: 3},
        {1: FEED},
        {2: 1, 3: 1},
        {1: FEED},
        {2: 1, 3: 1},
        {1: FEED},
    ]


def test_of_several_long_prompts_one_is_read_to_its_end_before_the_next() -> None:
    table = Table()
    for number in (1, 2):
        table.start(number, prompt=tuple(range(number, number + 2 * FEED)))
    table.start(3)
    assert [table.turn() for _ in range(8)] == [
        {3: 3},
        {1: FEED},
        {3: 1},
        {1: FEED},
        {2: FEED},
        {3: 1, 1: 1},
        {2: FEED},
        {3: 1, 1: 1, 2: 1},
    ]


def test_a_session_whose_window_is_full_is_passed_over() -> None:
    table = Table()
    table.start(1, WindowChoice(2, 2, True))
    table.start(2)
    assert [table.turn() for _ in range(5)] == [{1: 3}, {2: 3}, {1: 1, 2: 1}, {2: 1}, {2: 1}]


def test_a_session_that_comes_later_has_its_turn_before_the_others_have_their_next() -> None:
    table = Table()
    table.start(1)
    table.start(2)
    assert [table.turn() for _ in range(3)] == [{1: 3}, {2: 3}, {1: 1, 2: 1}]
    table.start(3)
    assert [table.turn() for _ in range(3)] == [{1: 1, 2: 1}, {3: 3}, {1: 1, 2: 1, 3: 1}]


def test_more_sessions_than_a_step_takes_have_equal_shares_of_the_steps() -> None:
    table = Table(max_rows=2)
    slots = [table.start(number) for number in (1, 2, 3)]
    for _ in range(3 + 6):
        table.turn()
    assert [slot.state.drafted for slot in slots] == [5, 5, 5]


def test_nobody_has_a_turn_when_all_windows_are_full() -> None:
    table = Table()
    table.start(1, WindowChoice(1, 1, True))
    assert table.turn() == {1: 3}
    assert table.turn() == {}


def test_a_session_in_the_middle_of_a_step_has_no_second_turn() -> None:
    table = Table()
    table.start(1)
    assert len(table.begin_step(FEED)) == 1
    assert table.begin_step(FEED) == []


@pytest.mark.parametrize(
    ("refused", "code", "message"),
    [
        (request(prompt=()), "bad_request", "empty"),
        (request(prompt=(VOCABULARY,)), "bad_request", f"token id {VOCABULARY}"),
        (request(committed=(VOCABULARY + 1,)), "bad_request", f"token id {VOCABULARY + 1}"),
        (request(prompt=(1,) * 1024), "too_long", "1024 tokens leaves no room in the context of 1024"),
        (request(prompt=(1,) * 1000, committed=(1,) * 24), "too_long", "1024 tokens leaves no room"),
    ],
)
def test_what_can_never_be_drafted_is_refused_for_good(refused: Speculate, code: str, message: str) -> None:
    table = Table()
    with pytest.raises(Refused, match=message) as refusal:
        table.speculate(refused, GATEWAY, CHOICE, 0.0)
    assert (refusal.value.code, refusal.value.retryable) == (code, False)
    assert len(table) == 0


def test_a_text_as_long_as_the_context_fits() -> None:
    assert Table().start(max_tokens=1021).cache.capacity == 1024


def test_an_answer_that_may_outgrow_the_context_is_drafted_for_up_to_there() -> None:
    table = Table()
    slot = table.start(prompt=(1,) * 1020, max_tokens=5000, min_tokens=2000)
    assert (slot.state.limit, slot.cache.capacity) == (1024, 1024)
    while table.turn():
        pass
    assert (len(slot.state.tokens), slot.state.drafted) == (1024, 4)


def test_a_session_that_has_outgrown_the_context_is_not_rebound() -> None:
    table = Table()
    slot = table.start(prompt=(1,) * 1000, max_tokens=5000)
    with pytest.raises(Refused, match="no room"):
        table.start(prompt=(1,) * 1000, max_tokens=5000, term=2, committed=(1,) * 30)
    assert slot.state.term == 1


def test_more_sessions_than_allowed_are_refused_for_now_but_known_ones_are_rebound() -> None:
    table = Table(max_sessions=1)
    slot = table.start(1)
    with pytest.raises(Refused, match="all 1 sessions") as refusal:
        table.start(2)
    assert (refusal.value.code, refusal.value.retryable) == ("overloaded", True)
    assert table.start(1, term=2) is slot


def test_a_draining_drafter_takes_no_new_session_but_serves_its_own() -> None:
    table = Table()
    slot = table.start(1)
    table.draining = True
    with pytest.raises(Refused) as refusal:
        table.start(2)
    assert (refusal.value.code, refusal.value.retryable) == ("draining", True)
    assert table.start(1, term=2) is slot


def test_another_gateway_can_not_take_a_session_over() -> None:
    table = Table()
    slot = table.start(1)
    with pytest.raises(Refused, match="another gateway"):
        table.speculate(request(1, term=2), OTHER_GATEWAY, CHOICE, 0.0)
    assert slot.state.term == 1


def test_a_lower_term_changes_nothing() -> None:
    table = Table()
    slot = table.start(1, term=3)
    assert table.start(1, term=2, choice=WindowChoice(2, 2, True)) is slot
    assert (slot.state.term, slot.state.window) == (3, 8)


def test_rebinding_keeps_the_cache_that_is_large_enough_and_takes_the_new_window() -> None:
    table = Table()
    slot = table.start(1)
    for _ in range(3):
        table.turn()
    cache = slot.cache
    table.start(1, term=2, committed=(1,), choice=WindowChoice(4, 2, True))
    assert slot.cache is cache
    assert (slot.state.computed, slot.state.window) == (4, 4)


def test_rebinding_to_a_longer_answer_gets_a_larger_cache_and_feeds_the_text_again() -> None:
    table = Table()
    slot = table.start(1, max_tokens=5)
    for _ in range(3):
        table.turn()
    table.start(1, term=2, max_tokens=50, committed=(1,))
    assert (slot.cache.capacity, slot.state.computed) == (53, 0)


def test_dropping_a_session_discards_its_open_guesses_once() -> None:
    table = Table()
    slot = table.start(1)
    for _ in range(3):
        table.turn()
    assert table.drop(slot.state.session_id) is slot
    assert table.drop(slot.state.session_id) is None
    assert slot.state.fates.discarded == slot.state.drafted == 3


@pytest.mark.parametrize(
    ("speculation", "window"), [(Speculation(), 8), (Speculation("static", 3), 3), (Speculation("static", 0), 0)]
)
def test_a_request_may_have_a_window_of_its_own(speculation: Speculation, window: int) -> None:
    slot = Table().start(speculation=speculation)
    assert (slot.state.window, slot.state.chunk) == (window, min(2, max(window, 1)))
    assert slot.is_adaptive == (speculation.mode == "adaptive")
    steer(slot, WindowChoice(12, 4, False))
    assert slot.state.window == (12 if slot.is_adaptive else window)


def test_a_request_with_a_window_of_its_own_has_its_own_threshold_too() -> None:
    static = Table().start(speculation=Speculation("static", 3, 0.6), choice=WindowChoice(8, 2, True, 0.3))
    assert static.state.min_confidence == 0.6
    adaptive = Table().start(speculation=Speculation(), choice=WindowChoice(8, 2, True, 0.3))
    assert adaptive.state.min_confidence == 0.3


def test_a_refusal_is_told_with_the_session_and_term_that_asked() -> None:
    failure = Refused("too_long", "x" * 3000, retryable=False).failure("ab" * 16, 7)
    assert (failure.session_id, failure.term, failure.code, failure.retryable) == ("ab" * 16, 7, "too_long", False)
    assert len(failure.message) == 1024
