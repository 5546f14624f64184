"""Which sessions share a draft step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policies.stepping import form_step


def fed(*num_todo: int, max_rows: int = 16, feed_tokens: int = 64) -> list[int]:
    tokens: list[int] = form_step(np.array(num_todo), max_rows, feed_tokens).tolist()
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
        ((90, 80, 70), (64, 0, 0)),
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


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(1, 16), st.integers(1, 64))
def test_the_oldest_turn_is_in_every_step_and_a_step_is_one_that_the_model_takes(
    num_todo: list[int], max_rows: int, feed_tokens: int
) -> None:
    tokens = fed(*num_todo, max_rows=max_rows, feed_tokens=feed_tokens)
    assert tokens[0] > 0
    assert all(num <= todo for num, todo in zip(tokens, num_todo, strict=True))
    rows = [num for num in tokens if num]
    assert len(rows) == 1 or (len(rows) <= max_rows and max(rows) == 1)
    assert max(rows) <= feed_tokens
