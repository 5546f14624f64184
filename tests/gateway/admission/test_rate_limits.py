"""What a key may do in a minute and at once, with a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest

from services.gateway.admission.api_keys import ApiKey, KeyLimits
from services.gateway.admission.rate_limits import OverLimit, Quotas, retry_after_s
from tests.gateway.conftest import Clock


def key(name: str = "a", **given: int) -> ApiKey:
    return ApiKey(name, KeyLimits(**given), "scope")


def is_let_in(quotas: Quotas, asking: ApiKey, num_sessions: int = 1) -> bool:
    try:
        quotas.enter(asking, num_sessions)
    except OverLimit:
        return False
    return True


def test_requests_per_minute_are_counted_by_key(clock: Clock) -> None:
    counts, first, second = Quotas(), key("a", requests_per_minute=3), key("b", requests_per_minute=3)
    assert [is_let_in(counts, first) for _ in range(5)] == [True] * 3 + [False] * 2
    assert is_let_in(counts, second)
    with pytest.raises(OverLimit, match="3 requests per minute") as refusal:
        counts.enter(first, 1)
    assert refusal.value.name == "requests_per_minute"
    clock.now += refusal.value.retry_after_s
    assert is_let_in(counts, first)


def test_tokens_are_charged_as_they_were_and_what_is_too_much_is_waited_off(clock: Clock) -> None:
    counts, asking = Quotas(), key(tokens_per_minute=100)
    assert is_let_in(counts, asking)
    assert is_let_in(counts, asking), "admitted while the window is not used up"
    counts.leave(asking, 1, 60)
    assert is_let_in(counts, asking)
    counts.leave(asking, 1, 140)
    with pytest.raises(OverLimit, match="100 tokens per minute") as refusal:
        counts.enter(asking, 1)
    assert refusal.value.retry_after_s == 60 + 30 + 1, "200 in this window; in the next they weigh half after 30 s"
    clock.now += refusal.value.retry_after_s - 1.5
    assert not is_let_in(counts, asking)
    clock.now += 1.5
    assert is_let_in(counts, asking)


def test_a_request_that_one_limit_refuses_is_charged_to_none(clock: Clock) -> None:
    counts, asking = Quotas(), key(requests_per_minute=3, tokens_per_minute=10, max_sessions=2)
    assert not is_let_in(counts, asking, 3)
    assert is_let_in(counts, asking, 2)
    assert not is_let_in(counts, asking)
    counts.leave(asking, 2, 10)
    assert not is_let_in(counts, asking), "no tokens are left"
    clock.now += 121
    assert [is_let_in(counts, asking) for _ in range(3)] == [True, True, False], "sessions"
    counts.leave(asking, 1, 0)
    assert [is_let_in(counts, asking) for _ in range(2)] == [True, False], "the two refused before cost no request"


def test_sessions_at_once_are_counted_by_key_and_given_back() -> None:
    counts, first, second = Quotas(), key("a", max_sessions=2), key("b", max_sessions=1)
    assert is_let_in(counts, first, 2)
    with pytest.raises(OverLimit, match="max_sessions"):
        counts.enter(first, 1)
    assert is_let_in(counts, second)
    counts.leave(first, 2, 0)
    assert is_let_in(counts, first)


def test_a_key_without_limits_is_never_refused() -> None:
    counts = Quotas()
    for _ in range(200):
        assert is_let_in(counts, key())
    counts.leave(key(), 200, 10**9)
    assert is_let_in(counts, key())


def test_retry_after_is_the_first_whole_second_at_which_there_is_room() -> None:
    num_checked = 0
    for limit, previous, current, left_s in itertools.product(
        [1, 7, 100], [0, 50, 250], [0, 6, 99, 1000], [0.25, 29.7, 60.0]
    ):
        used = [use_after(second, previous, current, left_s) for second in range(122)]
        if used[0] >= limit:
            told = retry_after_s(limit, 60, previous, left_s if previous else 0.0, current, left_s)
            assert told == next(second for second in range(122) if used[second] < limit)
            num_checked += 1
    assert num_checked > 50


def use_after(wait_s: float, previous: int, current: int, left_s: float) -> float:
    """The count of a sliding window of a minute whose present part has `left_s` to go."""
    if wait_s < left_s:
        return previous * (left_s - wait_s) / 60 + current
    return current * max(0.0, left_s + 60 - wait_s) / 60
