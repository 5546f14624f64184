"""Guesses from the text: what followed where it occurred before, the longest match first."""

from __future__ import annotations

import random

import pytest

from shared.protocol.lookup import (
    LONGEST_MATCH,
    MOST_FOLLOWED,
    NOTHING,
    LookedUp,
    LookupChances,
    OwnGuesses,
    TextLookup,
)
from shared.protocol.messages import TokenIds


def found(text: list[int], pending: tuple[int, ...] = (), most: int = 3, stop_ids: tuple[int, ...] = ()) -> LookedUp:
    lookup = TextLookup()
    lookup.follow(text)
    return lookup.find(text, pending, most, stop_ids)


def test_what_followed_the_last_two_tokens_before_is_the_guess() -> None:
    assert found([1, 2, 3, 4, 5, 9, 1, 2]) == LookedUp(TokenIds([3, 4, 5]), 2)


def test_of_two_occurrences_the_longer_match_counts_and_of_equals_the_newer() -> None:
    assert found([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], most=1) == LookedUp(TokenIds([3]), 3)
    assert found([7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], most=1) == LookedUp(TokenIds([4]), 2)


def test_a_text_that_repeats_itself_goes_on_for_as_long_as_asked() -> None:
    assert found([5, 6, 7, 5, 6, 7, 5, 6], most=7) == LookedUp(TokenIds([7, 5, 6, 7, 5, 6, 7]), 5)
    assert found([4, 4, 4, 4], most=3).token_ids == (4, 4, 4)


def test_one_equal_token_is_no_match() -> None:
    assert found([1, 2, 3, 4, 2]) == found([1, 2]) == found([1]) == found([]) == NOTHING


def test_guesses_of_the_drafter_are_part_of_the_match_and_of_what_follows() -> None:
    text = [1, 2, 3, 4, 5, 9, 1]
    assert found(text, pending=(2, 3), most=2) == LookedUp(TokenIds([4, 5]), 3)
    assert found([1, 2, 3, 8, 8], pending=(1, 2), most=5).token_ids == (3, 8, 8, 1, 2)


def test_nothing_follows_a_stop_token() -> None:
    assert found([1, 2, 0, 4, 1, 2], stop_ids=(0,)).token_ids == (0,)
    assert found([1, 0, 3, 4, 1, 0], stop_ids=(0,)) == NOTHING


def test_no_more_guesses_are_made_than_asked_for() -> None:
    assert found([1, 2, 3, 1, 2], most=0) == NOTHING
    assert found([1, 2, 3, 1, 2], most=-2) == NOTHING


def test_a_long_prompt_is_taken_in_piece_by_piece() -> None:
    text = [*range(10, 10 + MOST_FOLLOWED), 1, 2, 3, 1, 2]
    lookup = TextLookup()
    lookup.follow(text)
    assert lookup.find(text, (), 1, ()) == NOTHING
    lookup.follow(text)
    assert lookup.find(text, (), 1, ()).token_ids == (3,)


def test_a_growing_text_gives_what_the_whole_text_gives() -> None:
    rng = random.Random(3)
    for _ in range(200):
        whole = [rng.randrange(3) for _ in range(rng.randrange(2, 40))]
        lookup = TextLookup()
        for end in sorted(rng.sample(range(1, len(whole) + 1), min(4, len(whole)))):
            lookup.follow(whole[:end])
        lookup.follow(whole)
        assert lookup.find(whole, (), 5, ()) == found(whole, most=5)


def test_every_guess_follows_its_match_somewhere_in_the_text() -> None:
    rng = random.Random(4)
    for _ in range(300):
        text = [rng.randrange(4) for _ in range(rng.randrange(2, 60))]
        pending = tuple(rng.randrange(4) for _ in range(rng.randrange(3)))
        guess = found(text, pending, most=1)
        if not guess.match:
            continue
        tail = [*text, *pending][-guess.match :]
        places = [i for i in range(guess.match, len(text)) if text[i - guess.match : i] == tail]
        assert guess.token_ids[0] in [text[i] for i in places]


def test_chances_fall_along_the_guesses_and_grow_with_the_match() -> None:
    chances = LookupChances()
    short = chances.survival(LookedUp(TokenIds([1, 2, 3]), 2), 1.0)
    long = chances.survival(LookedUp(TokenIds([1, 2, 3]), LONGEST_MATCH), 1.0)
    assert 1 > short[0] > short[1] > short[2] > 0
    assert all(each > other for each, other in zip(long, short, strict=True))
    assert chances.survival(LookedUp(TokenIds([1]), 2), 0.5) == [pytest.approx(short[0] / 2)]
    assert chances.survival(NOTHING, 1.0) == []


def test_chances_follow_what_became_of_guesses_of_the_same_match() -> None:
    chances = LookupChances()
    guess, other = LookedUp(TokenIds([1]), 2), LookedUp(TokenIds([1]), 5)
    before = chances.survival(other, 1.0)
    for _ in range(2000):
        chances.observe(2, 0, is_wrong=True)
    assert chances.survival(guess, 1.0)[0] < 0.02
    for _ in range(2000):
        chances.observe(2, 1, is_wrong=False)
    assert chances.survival(guess, 1.0)[0] > 0.98
    assert chances.survival(other, 1.0) == before


def test_the_guesses_of_a_run_count_at_the_match_that_they_had() -> None:
    chances = LookupChances()
    before = [chances.survival(LookedUp(TokenIds([1]), match), 1.0)[0] for match in (2, 3, 4)]
    chances.observe(2, 1, is_wrong=True)
    after = [chances.survival(LookedUp(TokenIds([1]), match), 1.0)[0] for match in (2, 3, 4)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] == before[2]


def test_each_guess_taken_gets_one_fate() -> None:
    own = OwnGuesses()
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    own.look_up(text, (), 4, ())
    taken = own.take(3)
    assert taken.token_ids == (3, 4, 5)
    assert own.ready == NOTHING
    own.judge(taken, 1, 2)  # the second was wrong, the third had no draw
    assert (own.fates.accepted, own.fates.rejected, own.fates.discarded) == (1, 1, 1)
    own.judge(taken, 0, -1)  # the drafter's guess in front of them was wrong
    assert (own.fates.accepted, own.fates.rejected, own.fates.discarded) == (1, 1, 4)


def test_another_text_has_no_guesses_of_the_old_one() -> None:
    own = OwnGuesses()
    own.look_up([1, 2, 3, 1, 2], (), 4, ())
    own.forget_text()
    assert own.ready == NOTHING
    own.look_up([1, 2], (), 4, ())
    assert own.ready == NOTHING
