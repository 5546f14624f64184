"""Prefixes that sessions take over from each other: what is read again, who shares with whom, what gives way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from awc.policy import DEFAULT_CHOICE, WindowChoice
from services.edge_drafter.graphs.graph import Prefix
from services.edge_drafter.prefixes import MIN_TOKENS
from services.edge_drafter.sessions import DraftSessions, SessionSlot
from shared.protocol.messages import (
    NO_TOKENS,
    Close,
    Sampling,
    Speculate,
    Speculation,
    Tally,
    TokenIds,
    Verdict,
)
from tests.drafter.conftest import Start, World
from tests.fakes import FakeDraft, answer

GATEWAY, VERIFIER = "gateway.0123456789ab", "cloud.0123456789ab"
FEED, WINDOW = 64, 4
QUESTION = tuple(1 + number * number % 89 for number in range(60))
NEW = (3, 1, 4, 1, 5, 9, 2, 6)


class Chats(DraftSessions):
    """A drafter's table, and the steps of its sessions."""

    def __init__(self, prefix_cache_tokens: int = 4096, max_rows: int = 16) -> None:
        self.model = FakeDraft(max_context=4096, max_rows=max_rows)
        super().__init__(self.model, 100, prefix_cache_tokens)  # type: ignore[arg-type]
        self.taken: list[Prefix] = []

    def ask(self, number: int, prompt: Sequence[int] = QUESTION, scope: str | None = "a") -> SessionSlot:
        ids, speculation = TokenIds(prompt), Speculation("static", WINDOW)
        request = Speculate(
            f"{number:032x}", 1, VERIFIER, ids, NO_TOKENS, Sampling(), NO_TOKENS, 100, speculation, cache_scope=scope
        )
        return self.speculate(request, GATEWAY, WindowChoice(WINDOW, 1, True), 0.0)

    def step(self) -> dict[int, int]:
        """One draft step: the tokens fed of each session in it, by the session's number."""
        shares = self.begin_step(FEED)
        self.taken += [share.row.prefix for share in shares if share.row.prefix]
        logits = self.model.step([share.row for share in shares]) if shares else []
        for share, after_last in zip(shares, logits, strict=True):
            state = share.slot.state
            state.end_step(share.step, share.inputs.draw(after_last).token_id if share.inputs else 0)
            assert share.slot.cache.text == state.tokens[: state.computed]  # type: ignore[attr-defined]
        return {int(share.slot.state.session_id, 16): len(share.step.fed_ids) for share in shares}

    def draft(self) -> dict[int, int]:
        """All steps until the windows are full: the tokens fed of each session before its last guess but one."""
        fed: dict[int, int] = {}
        while step := self.step():
            for number, num in step.items():
                fed[number] = fed.get(number, 0) + num
        for slot in self:
            state = slot.state
            assert state.tokens[state.committed :] == answer(state.tokens[: state.committed], WINDOW)
        return {number: num - (WINDOW - 1) for number, num in fed.items()}

    def end(self, slot: SessionSlot, num_tokens: int = WINDOW) -> list[int]:
        """The verifier accepts guesses and ends the answer; returns the whole text."""
        state = slot.state
        ids = TokenIds(state.tokens[state.committed :][:num_tokens])
        state.on_verdict(
            Verdict(state.session_id, 1, 0, state.committed, ids, len(ids), "stop", None, 1.0, 1, 0.0, Tally()), 0.0
        )
        self.drop(state.session_id)
        return state.tokens

    def turn(self, number: int, prompt: Sequence[int] = QUESTION, scope: str | None = "a") -> list[int]:
        """A whole session; returns its text."""
        slot = self.ask(number, prompt, scope)
        self.draft()
        return self.end(slot)


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 97) for _ in range(length)]


def test_a_second_turn_with_2000_tokens_of_history_reads_the_new_tokens_alone() -> None:
    chats = Chats()
    history = chats.turn(1, text(1, 2000 - WINDOW))
    assert len(history) == 2000
    chats.ask(2, [*history, *NEW])
    assert chats.draft() == {2: len(NEW) + 1}, "the newest token of the history was never fed"
    assert [prefix.is_moved for prefix in chats.taken] == [True]


def test_a_chat_goes_on_for_many_turns() -> None:
    chats, history = Chats(), list(QUESTION)
    for number in range(5):
        slot = chats.ask(number, history)
        assert chats.draft() == {number: len(NEW) + 1 if number else len(QUESTION)}
        history = [*chats.end(slot), *NEW]


@pytest.mark.parametrize("scope", ["b", None])
def test_a_session_of_another_scope_or_of_none_reads_its_whole_text(scope: str | None) -> None:
    chats = Chats()
    history = chats.turn(1)
    chats.ask(2, history)
    chats.draft()
    chats.ask(3, history, scope)
    assert chats.draft() == {3: len(history)}


def test_sessions_without_a_scope_share_nothing_with_each_other() -> None:
    chats = Chats()
    history = chats.turn(1, scope=None)
    chats.ask(2, history, None)
    chats.ask(3, history, None)
    assert chats.draft() == {2: len(history), 3: len(history)}


def test_the_choices_of_one_prompt_read_it_once_together() -> None:
    chats, prompt = Chats(), text(2, 500)
    for number in range(4):
        chats.ask(number, prompt)
    fed = chats.draft()
    assert sum(fed.values()) == 500 + 3, "each of them feeds the last token for its logits"


def test_a_prompt_that_parts_from_an_earlier_text_is_read_from_there_on_and_both_texts_stay() -> None:
    chats = Chats()
    first = chats.turn(1)
    other = [*QUESTION[:40], *text(3, 30)]
    slot = chats.ask(2, other)
    assert chats.draft() == {2: 30}
    assert [prefix.is_moved for prefix in chats.taken] == [False]
    second = chats.end(slot)
    for number, history in ((3, first), (4, second)):
        chats.ask(number, [*history, *NEW])
        assert chats.draft() == {number: len(NEW) + 1}


def test_the_same_prompt_again_is_read_from_its_last_token() -> None:
    chats = Chats()
    chats.turn(1)
    chats.ask(2)
    assert chats.draft() == {2: 1}


def test_what_begins_alike_for_fewer_tokens_than_are_worth_a_copy_is_read() -> None:
    chats = Chats()
    chats.turn(1)
    for number, common, fed in ((2, MIN_TOKENS - 1, 40), (3, MIN_TOKENS, 40 - MIN_TOKENS)):
        chats.ask(number, [*QUESTION[:common], *text(number, 40 - common)], "a")
        assert chats.draft() == {number: fed}


def test_a_wrong_guess_after_a_taken_prefix_is_rolled_back() -> None:
    chats = Chats()
    history = chats.turn(1)
    slot = chats.ask(2, [*history, *NEW])
    chats.draft()
    state = slot.state
    other = TokenIds([state.tokens[state.committed] % 96 + 1])
    state.on_verdict(
        Verdict(state.session_id, 1, 1, state.committed, other, 0, None, None, 1.0, 1, 0.0, Tally()), now=0.0
    )
    assert chats.draft() == {2: 1}


def test_the_text_used_longest_ago_gives_way_above_the_limit() -> None:
    chats = Chats(prefix_cache_tokens=3 * (100 + 2 * WINDOW))
    histories = [chats.turn(number, text(number, 100)) for number in range(3)]
    chats.turn(3, histories[0])  # takes the place of the first
    chats.turn(4, text(4, 100))
    for number, fed in ((0, 1), (2, 1), (1, 100 + WINDOW)):
        chats.ask(10 + number, histories[number])
        assert chats.draft() == {10 + number: fed}


def test_a_text_of_which_a_part_is_used_has_been_used() -> None:
    chats = Chats(prefix_cache_tokens=3 * (100 + WINDOW))
    histories = [chats.turn(number, text(number, 100)) for number in range(2)]
    chats.ask(4, [*histories[0][:60], *NEW])
    chats.draft()
    for number in (5, 6):
        chats.turn(number, text(number, 100))
    for number, fed in ((0, 1), (1, 100 + WINDOW)):
        chats.ask(10 + number, histories[number])
        assert chats.draft() == {10 + number: fed}


def test_a_text_that_many_sessions_had_is_kept_once() -> None:
    chats = Chats(prefix_cache_tokens=2 * (100 + WINDOW))
    history, same = chats.turn(1, text(1, 100)), text(2, 100)
    slots = [chats.ask(number, same) for number in range(2, 6)]
    chats.draft()
    for slot, num_tokens in zip(slots, (2, WINDOW, 2, WINDOW), strict=True):
        chats.end(slot, num_tokens)
    chats.ask(6, history)
    assert chats.draft() == {6: 1}


def test_a_text_above_the_limit_drives_out_no_other() -> None:
    chats = Chats(prefix_cache_tokens=100)
    history = chats.turn(1)
    chats.turn(2, text(2, 200))
    chats.ask(3, history)
    assert chats.draft() == {3: 1}


def test_a_limit_of_0_turns_sharing_off() -> None:
    chats = Chats(prefix_cache_tokens=0)
    history = chats.turn(1)
    for number in (2, 3):
        chats.ask(number, history)
    assert chats.draft() == {2: len(history), 3: len(history)}


def test_kept_texts_give_way_to_sessions_that_need_their_memory() -> None:
    chats = Chats()
    histories = [chats.turn(number, text(number, 100)) for number in range(3)]
    chats.model.max_caches = 3
    chats.ask(10, text(10, 50))
    chats.draft()
    for number, fed in ((0, 100 + WINDOW), (2, 1)):  # the oldest has given way
        chats.ask(20 + number, histories[number])
        assert chats.draft() == {20 + number: fed}


def test_a_text_that_must_give_way_is_used_up_instead_of_copied() -> None:
    chats = Chats()
    history = chats.turn(1)
    chats.model.max_caches = 1
    slot = chats.ask(2, [*history[:40], *NEW])
    assert chats.draft() == {2: len(NEW)}
    assert [prefix.is_moved for prefix in chats.taken] == [True]
    chats.end(slot)
    chats.ask(3, history)
    assert chats.draft() == {3: len(history) - 40}


def test_a_session_that_ends_in_the_middle_of_its_prompt_leaves_what_it_has_read() -> None:
    chats, prompt = Chats(), text(5, 300)
    chats.ask(1, prompt)
    chats.step()
    shares = chats.begin_step(FEED)
    chats.drop(shares[0].slot.state.session_id)  # while the step runs
    chats.model.step([share.row for share in shares])
    shares[0].slot.state.end_step(shares[0].step, 0)
    chats.ask(2, prompt)
    assert chats.draft() == {2: 300 - FEED}


def test_after_a_failed_step_others_take_only_what_is_there() -> None:
    chats, prompt = Chats(), text(6, 300)
    chats.ask(1, prompt)
    chats.step()
    share = chats.begin_step(FEED)[0]
    share.slot.cache.text.clear()  # type: ignore[attr-defined]
    chats.drop(share.slot.state.session_id)
    chats.ask(2, prompt)
    assert chats.draft() == {2: 300}


@pytest.mark.parametrize("seed", range(8))
def test_whoever_takes_over_from_whom_each_session_guesses_after_its_own_text(seed: int) -> None:
    """`Chats.step` compares caches and texts, `Chats.draft` guesses."""
    rng = random.Random(seed)
    chats = Chats(rng.choice([0, 150, 600, 4096]), rng.choice([1, 16]))
    texts, slots = [text(seed, 50)], []
    for number in range(60):
        chats.model.max_caches = rng.choice([1, 3, 100])
        if rng.random() < 0.6:
            cut = rng.choice(texts)
            prompt = [*cut[: rng.choice([len(cut), rng.randint(1, len(cut))])], *text(number, rng.randint(1, 30))]
            slots.append(chats.ask(number, prompt, rng.choice(["a", "a", "b", None])))
        for _ in range(rng.randint(0, 6)):
            chats.step()
        if slots and rng.random() < 0.5:
            texts.append(chats.end(slots.pop(rng.randrange(len(slots))), rng.randint(0, WINDOW)))
        if rng.random() < 0.2:
            chats.draft()


async def guesses_of_two_turns(world: World) -> list[list[int]]:
    """The window's guesses of a chat's first and of its second turn."""
    found, prompt = [], list(QUESTION)
    for _ in range(2):
        request = await world.speculate(prompt, cache_scope="a")
        ids = await world.drafted(request, 0, DEFAULT_CHOICE.window)
        found.append(ids)
        await world.tell(world.verifier, world.verdict(request, 0, ids, accepted=len(ids)))
        await world.tell(world.gateway, Close(request.session_id, 1))
        prompt = [*prompt, *ids, *NEW]
    await world.settled()
    return found


async def test_a_drafter_guesses_the_same_with_and_without_taken_prefixes(start: Start) -> None:
    async with start(prefix_cache_tokens=0) as world:
        expected = await guesses_of_two_turns(world)
        assert world.count("drafter_prefix_cache_hits") == 0
    async with start() as world:
        assert await guesses_of_two_turns(world) == expected
        assert world.count("drafter_prefix_cache_hits") >= len(QUESTION)


async def test_a_step_that_fails_after_a_prefix_was_taken_costs_its_session_only(start: Start) -> None:
    async with start() as world:
        request = await world.speculate(QUESTION, cache_scope="a")
        await world.drafted(request, 0, DEFAULT_CHOICE.window)
        await world.tell(world.gateway, Close(request.session_id, 1))
        world.model.poison = 90
        for _ in range(2):  # the second finds what the first has left
            await world.speculate([*QUESTION, 90], cache_scope="a")
            await world.settled()
        later = await world.speculate([*QUESTION, *NEW], cache_scope="a")
        expected = answer([*QUESTION, *NEW], DEFAULT_CHOICE.window)
        assert await world.drafted(later, 0, DEFAULT_CHOICE.window) == expected
