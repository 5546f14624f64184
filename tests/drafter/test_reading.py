"""A long text of which the draft reads the start and the end alone: its cache, what others take over, changed texts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from awc.policy import WindowChoice
from services.edge_drafter.prefixes import Gap, HeldText
from services.edge_drafter.sessions import DraftSessions, SessionSlot
from shared.policies.reading import FIRST_READ, LAST_READ
from shared.protocol.messages import NO_TOKENS, Sampling, Speculate, Speculation, TokenIds
from tests.fakes import FakeDraft, answer

GATEWAY, VERIFIER = "gateway.0123456789ab", "cloud.0123456789ab"
FEED, WINDOW, MOST = 48, 4, FIRST_READ + LAST_READ
SLOW_MS = 10.0  # of a prompt token


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 97) for _ in range(length)]


def read(prompt: Sequence[int]) -> list[int]:
    """What a slow draft reads of a prompt."""
    return [*prompt[:FIRST_READ], *prompt[-LAST_READ:]]


def request(number: int, prompt: Sequence[int], term: int = 1, committed: Sequence[int] = ()) -> Speculate:
    return Speculate(
        f"{number:032x}", term, VERIFIER, TokenIds(prompt), TokenIds(committed), Sampling(), NO_TOKENS, 2000,
        Speculation("static", WINDOW), cache_scope="a",
    )  # fmt: skip


class Readers(DraftSessions):
    """A drafter's table, and the steps of its sessions."""

    def __init__(self, token_ms: float = SLOW_MS) -> None:
        self.model, self.token_ms = FakeDraft(max_context=4096), token_ms
        super().__init__(self.model, 10, prefix_cache_tokens=4096)  # type: ignore[arg-type]

    def ask(self, number: int, prompt: Sequence[int], term: int = 1, committed: Sequence[int] = ()) -> SessionSlot:
        asked = request(number, prompt, term, committed)
        return self.speculate(asked, GATEWAY, WindowChoice(WINDOW, 1, True), 0.0)

    def step(self) -> int:
        """One draft step; returns the tokens fed."""
        shares = self.begin_step(FEED, self.token_ms)
        logits = self.model.step([share.row for share in shares]) if shares else []
        for share, after_last in zip(shares, logits, strict=True):
            guess = share.inputs.draw(after_last).token_id if share.inputs else 0
            share.slot.state.end_step(share.step, guess)
        return sum(len(share.step.fed_ids) for share in shares)

    def draft(self) -> int:
        """All steps until the windows are full; returns the tokens fed."""
        return sum(iter(self.step, 0))


def guesses(slot: SessionSlot) -> list[int]:
    return slot.state.tokens[slot.state.committed :]


def cached(slot: SessionSlot) -> list[int]:
    return slot.cache.text  # type: ignore[attr-defined,no-any-return]


def test_a_slow_draft_reads_the_start_and_the_end_of_a_long_prompt_and_guesses_from_them() -> None:
    readers, prompt = Readers(), text(1, 2000)
    slot = readers.ask(1, prompt)
    assert readers.draft() == MOST + WINDOW - 1
    assert guesses(slot) == answer(read(prompt), WINDOW)
    assert cached(slot) == [*read(prompt), *guesses(slot)[:-1]]


@pytest.mark.parametrize(("token_ms", "length"), [(0.5, 2000), (SLOW_MS, MOST), (0.0, 2000)])
def test_a_prompt_that_is_short_or_read_quickly_is_read_whole(token_ms: float, length: int) -> None:
    readers, prompt = Readers(token_ms), text(1, length)
    slot = readers.ask(1, prompt)
    assert readers.draft() == length + WINDOW - 1
    assert guesses(slot) == answer(prompt, WINDOW)


def test_a_rejected_guess_behind_the_gap_is_rolled_back_in_the_right_place() -> None:
    readers, prompt = Readers(), text(2, 1500)
    slot = readers.ask(1, prompt)
    readers.draft()
    right = [*guesses(slot)[:2], 50]
    slot = readers.ask(1, prompt, term=2, committed=right)
    assert readers.draft() == 1 + WINDOW - 1, "only the token that was not guessed is fed"
    assert guesses(slot) == answer([*read(prompt), *right], WINDOW)


def test_a_part_is_left_out_once_and_a_draft_that_was_paused_reads_on_from_there() -> None:
    readers, prompt = Readers(), text(3, 1500)
    slot = readers.ask(1, prompt)
    readers.draft()
    begun = text(4, 800)
    slot = readers.ask(1, prompt, term=2, committed=begun)
    readers.token_ms = 100.0
    assert readers.draft() == len(begun) + WINDOW - 1
    assert guesses(slot) == answer([*read(prompt), *begun], WINDOW)


def test_a_text_that_changes_within_the_gap_is_read_anew_from_there() -> None:
    readers, prompt = Readers(), text(5, 1500)
    readers.ask(1, prompt)
    readers.draft()
    other = [*prompt[:700], *text(6, 20)]
    slot = readers.ask(1, other, term=2)
    assert readers.draft() == MOST + WINDOW - 1
    assert guesses(slot) == answer([*other[:FIRST_READ], *other[-MOST:]], WINDOW)


def test_the_next_turn_of_a_chat_takes_over_the_gap_and_reads_the_new_tokens_alone() -> None:
    readers, prompt = Readers(), text(7, 1500)
    readers.ask(1, prompt)
    readers.draft()
    new = text(8, 30)
    readers.drop(f"{1:032x}")
    slot = readers.ask(2, [*prompt, *new])
    assert readers.draft() == len(new) + WINDOW - 1
    assert guesses(slot) == answer([*read(prompt), *new], WINDOW)


def test_a_text_that_parts_from_another_in_its_gap_takes_over_what_is_before_it() -> None:
    readers, prompt = Readers(), text(7, 1500)
    readers.ask(1, prompt)
    readers.draft()
    other = [*prompt[:700], *text(9, 100)]
    slot = readers.ask(2, other)
    readers.token_ms = 0.0  # it reads all
    assert readers.draft() == len(other) - FIRST_READ + WINDOW - 1
    assert guesses(slot) == answer(other, WINDOW)


def test_a_session_that_has_read_further_than_a_gap_begins_does_not_take_it_over() -> None:
    readers, prompt = Readers(), text(11, 1500)
    other = readers.ask(2, prompt)
    readers.step()
    assert other.gap == Gap(FIRST_READ, len(prompt) - LAST_READ)
    other.state.steer(0, 1, True)
    readers.token_ms = 0.0
    whole = readers.ask(1, prompt)
    while whole.state.computed <= FIRST_READ:
        readers.step()
    whole.state.steer(0, 1, True)
    other.state.steer(WINDOW, 1, True)
    readers.draft()
    whole.state.steer(WINDOW, 1, True)
    readers.draft()
    assert whole.gap is None
    assert guesses(whole) == answer(prompt, WINDOW)


@pytest.mark.parametrize(("in_cache", "expected"), [(30, 30), (64, 64), (70, 170), (100, 200)])
def test_after_a_failed_step_no_more_is_taken_over_than_the_cache_holds(in_cache: int, expected: int) -> None:
    whole, cache = text(12, 200), FakeDraft().new_cache(300)
    cache.text = whole[:in_cache]
    assert HeldText("a", whole, cache, Gap(64, 164)).num_common([*whole, 5]) == expected  # type: ignore[arg-type]


def test_what_the_prefix_cache_has_is_not_left_out() -> None:
    readers, prompt = Readers(0.0), text(8, 1500)
    readers.ask(1, prompt)
    readers.draft()
    readers.drop(f"{1:032x}")
    readers.token_ms = SLOW_MS
    more = [*prompt, *text(9, 700)]
    slot = readers.ask(2, more)
    assert readers.draft() == MOST + WINDOW - 1
    assert guesses(slot) == answer([*prompt, *more[-MOST:]], WINDOW)
