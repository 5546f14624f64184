"""What a draft leaves out of a long text."""

from __future__ import annotations

import pytest

from shared.policies.reading import FIRST_READ, LAST_READ, READ_MS, num_left_out, reading_ms


@pytest.mark.parametrize(
    ("num_todo", "token_ms", "expected"),
    [
        (10**6, 0.0, 0),
        (10**6, 5e-324, 0),
        (1000, 1.0, 0),
        (1000, 0.5, 0),
        (1500, 1.0, 500),
        (3000, 0.5, 1000),
        (1500, 100.0, 1500 - FIRST_READ - LAST_READ),
        (500, 100.0, 0),
    ],
)
def test_a_draft_reads_for_a_second_or_the_first_and_last_tokens(num_todo: int, token_ms: float, expected: int) -> None:
    assert num_left_out(num_todo, token_ms) == expected
    assert reading_ms(num_todo, token_ms) == pytest.approx((num_todo - expected) * token_ms)


def test_reading_never_takes_longer_than_the_least_that_is_read_or_the_time_for_it() -> None:
    for token_ms in (0.001, 0.1, 1.7, 20.0):
        assert reading_ms(10**5, token_ms) <= max(READ_MS, (FIRST_READ + LAST_READ) * token_ms)
