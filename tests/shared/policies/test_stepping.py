"""Which sessions share a draft step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policies.stepping import form_step, turn_of


def fed(*num_todo: int, max_rows: int = 16, feed_tokens: int = 64) -> list[int]:
    found = np.array(num_todo)
    tokens: list[int] = form_step(found, turn_of(found, max_rows), max_rows, feed_tokens).tolist()
    return tokens


@pytest.mark.parametrize(
    ("num_todo", "expected"),
    [
        ((1,), (1,)),
        ((5,), (5,)),
        ((500,), (64,)),
        ((1, 1), (1, 1)),
        ((1, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1)),
    ],
)
def test_a_session_alone_feeds_all_that_it_may_and_several_feed_one_token_each(
    num_todo: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert fed(*num_todo) == list(expected)


@pytest.mark.parametrize(
    ("num_todo", "expected"),
    [
        ((2, 1), (2, 0)),  # of two sessions, one that lags has a step of its own
        ((1, 2), (1, 0)),
        ((2, 1, 1), (1, 1, 1)),  # among more it goes along, one token at a time
        ((4, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1)),
        ((5, 1, 1, 1, 1, 1, 1, 1), (5, 0, 0, 0, 0, 0, 0, 0)),
        ((1, 1, 1, 90), (1, 1, 1, 0)),
        ((90, 1, 1, 1), (64, 0, 0, 0)),
    ],
)
def test_a_session_that_catches_up_goes_along_or_has_a_step_of_its_own(
    num_todo: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert fed(*num_todo) == list(expected)


def test_a_step_has_no_more_sessions_than_the_model_takes_the_oldest_turns_first() -> None:
    assert fed(1, 1, 1, 1, max_rows=3) == [1, 1, 1, 0]
    assert fed(1, 7, 1, 1, max_rows=3) == [1, 0, 1, 1]
    assert fed(3, 1, 1, 1, max_rows=1) == [3, 0, 0, 0]


def test_of_several_that_read_the_one_with_the_least_left_goes_on_and_the_others_wait() -> None:
    assert fed(90, 80, 70) == [0, 0, 64]
    assert fed(90, 80, 6) == [0, 0, 6]
    assert fed(90, 90) == [64, 0]  # of equals the one with the older turn
    assert fed(90, 80, max_rows=1) == [0, 64]


def test_sessions_that_guess_step_between_two_chunks_however_many_wait_to_read() -> None:
    assert fed(90, 1, 80, 1, 70) == [0, 1, 0, 1, 0]
    assert fed(90, 80, 6, 1, 1) == [0, 0, 6, 0, 0]
    assert fed(90, 80, 1, 1, 6) == [0, 0, 1, 1, 0]


def test_prompts_that_come_together_are_read_one_after_the_other() -> None:
    """Each ends as if it had been alone behind those before it; all at once would end with the last."""
    left, order, ends = [200, 200, 200], [0, 1, 2], []
    for number in range(1, 100):
        tokens = fed(*(left[each] for each in order), feed_tokens=64)
        (place,) = [i for i, num in enumerate(tokens) if num]
        session = order.pop(place)
        left[session] -= tokens[place]
        if left[session]:
            order.append(session)
        else:
            ends.append(number)
        if not order:
            break
    assert ends == [4, 8, 12]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(1, 16), st.integers(1, 64))
def test_the_oldest_turn_that_does_not_wait_for_another_to_read_is_in_a_step_that_the_model_takes(
    num_todo: list[int], max_rows: int, feed_tokens: int
) -> None:
    tokens = fed(*num_todo, max_rows=max_rows, feed_tokens=feed_tokens)
    most_todo = (min(len(num_todo), max_rows) + 1) // 2
    reading = [todo for todo in num_todo if todo > most_todo]
    may = [i for i, todo in enumerate(num_todo) if todo <= most_todo or todo == min(reading)]
    assert tokens[may[0]] > 0
    assert sum(num > 0 for num, todo in zip(tokens, num_todo, strict=True) if todo > most_todo) <= 1
    assert all(num <= todo for num, todo in zip(tokens, num_todo, strict=True))
    rows = [num for num in tokens if num]
    assert len(rows) == 1 or (len(rows) <= max_rows and max(rows) == 1)
    assert max(rows) <= feed_tokens
