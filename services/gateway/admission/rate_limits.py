"""Limits of API keys: requests and tokens per minute, sessions at once.

Invariant: a request is admitted by all limits of its key, or charged to none. All used tokens are charged; usage above
the limit delays the next request. Counts belong to this gateway and start at zero with it. Windows slide: the previous
minute counts in proportion to the part of it that is less than a minute ago (library `limits`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Literal, TypeAlias

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from services.gateway.admission.api_keys import ApiKey

LimitName: TypeAlias = Literal["requests_per_minute", "tokens_per_minute", "max_sessions"]

SESSION_RETRY_S = 1  # it is unknown when a session under way will end


class OverLimit(Exception):
    """The key has used up one of its limits."""

    def __init__(self, name: LimitName, limit: int, retry_after_s: int) -> None:
        super().__init__(f"the key's limit of {limit} {_WORDS[name]} is reached")
        self.name = name
        self.retry_after_s = retry_after_s


_WORDS: dict[LimitName, str] = {
    "requests_per_minute": "requests per minute (requests_per_minute)",
    "tokens_per_minute": "tokens per minute (tokens_per_minute)",
    "max_sessions": "answers under way or waiting (max_sessions)",
}


class Quotas:
    """Usage of all keys."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._windows = SlidingWindowCounterRateLimiter(self._storage)
        self._num_sessions: Counter[str] = Counter()

    def enter(self, key: ApiKey, num_sessions: int) -> None:
        """Admits a request for so many sessions and charges it; raises OverLimit."""
        limits = key.limits
        most, tokens, requests = limits.max_sessions, limits.tokens_per_minute, limits.requests_per_minute
        if most is not None and self._num_sessions[key.name] + num_sessions > most:
            raise OverLimit("max_sessions", most, SESSION_RETRY_S)
        if tokens is not None and not self._windows.test(_tokens(tokens), key.name):
            raise OverLimit("tokens_per_minute", tokens, self._retry_after_s(_tokens(tokens), key))
        if requests is not None and not self._windows.hit(_requests(requests), key.name):
            raise OverLimit("requests_per_minute", requests, self._retry_after_s(_requests(requests), key))
        self._num_sessions[key.name] += num_sessions

    def leave(self, key: ApiKey, num_sessions: int, num_tokens: int) -> None:
        """An admitted request has ended and used so many tokens, whether its answers are whole or not."""
        self._num_sessions[key.name] -= num_sessions
        if not self._num_sessions[key.name]:
            del self._num_sessions[key.name]
        if key.limits.tokens_per_minute is not None and num_tokens:
            self._charge(_tokens(key.limits.tokens_per_minute), key, num_tokens)

    def _charge(self, item: RateLimitItem, key: ApiKey, cost: int) -> None:
        """Counts tokens beyond the limit too, which `hit` would refuse to count."""
        window_s = item.get_expiry()
        _, current = self._storage.sliding_window_keys(item.key_for(key.name), window_s, time.time())
        self._storage.incr(current, 2 * window_s, amount=cost)

    def _retry_after_s(self, item: RateLimitItem, key: ApiKey) -> int:
        window_s = item.get_expiry()
        window = self._storage.get_sliding_window(item.key_for(key.name), window_s)
        previous, previous_left_s, current, current_left_s = window
        return retry_after_s(item.amount, window_s, previous, previous_left_s, current, current_left_s - window_s)


def retry_after_s(
    limit: int, window_s: float, previous: int, previous_left_s: float, current: int, current_left_s: float
) -> int:
    """Whole seconds until previous · left / window + current is below the limit, if nothing more is charged.

    The library's own `reset_time` is the time at which the count next falls, not the time at which it is low enough.
    """
    if current < limit:
        wait_s = previous_left_s - window_s * (limit - current) / max(1, previous)
    else:  # the current window must end first; then its own count decays
        wait_s = current_left_s + window_s * (1 - limit / current)
    return math.floor(max(0.0, wait_s)) + 1


def _requests(limit: int) -> RateLimitItem:
    return RateLimitItemPerMinute(limit, namespace="requests")


def _tokens(limit: int) -> RateLimitItem:
    return RateLimitItemPerMinute(limit, namespace="tokens")
