"""Which instance gets the next session: pure policies over heartbeat loads, shared by the gateway and DSD-Sim.

Invariant: a policy chooses one of its candidates, or None if there are none, and never uses a global random generator.
JSQ is join-the-shortest-queue; JSQ(d) compares d random candidates only (Mitzenmacher, 2001).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Protocol

from msgspec import Struct

from shared.protocol.messages import Load

SHARES, SPARE = 2, 2  # of `within_share`


class RoutingCandidate(Struct, frozen=True):
    """An instance that may be chosen, with the load of its newest heartbeat."""

    instance_id: str
    load: Load
    num_since: int = 0  # assignment changes not yet reflected in `load`
    num_own: int = 0  # sessions that the caller has placed there, whatever `load` says
    kv_since: int = 0  # tokens of KV cache that they reserve

    @property
    def queue_length(self) -> tuple[int, int]:
        """The sort key of JSQ: sessions, then queued tokens."""
        return (max(self.load.num_sessions + self.num_since, self.num_own), self.load.queue_tokens)

    def has_room(self, kv_tokens: int) -> bool:
        """Whether a new session gets so much KV cache at once. True if the load tells of no KV cache."""
        return not self.load.kv_tokens or self.load.free_kv_tokens - self.kv_since >= kv_tokens


def with_room(candidates: Sequence[RoutingCandidate], kv_tokens: int) -> Sequence[RoutingCandidate]:
    """The candidates that have so much KV cache free. A router chooses among them, or among all if this is empty."""
    return [candidate for candidate in candidates if candidate.has_room(kv_tokens)]


def within_share(candidates: Sequence[RoutingCandidate]) -> Sequence[RoutingCandidate]:
    """The candidates with at most SHARES times the caller's sessions of the candidate that has fewest, and SPARE more:
    no claim about its load, speed or distance gets an instance more, whatever the policy."""
    most = SHARES * min((candidate.num_own for candidate in candidates), default=0) + SPARE
    return [candidate for candidate in candidates if candidate.num_own <= most]


class Router(Protocol):
    """A routing policy. It may keep state, such as the last choice of round-robin."""

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None: ...


class RandomRouter:
    """Any candidate, with equal probability."""

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None:
        return rng.choice(candidates) if candidates else None


class RoundRobinRouter:
    """The candidate with the next id after the last chosen one."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None:
        if not candidates:
            return None
        ordered = sorted(candidates, key=lambda candidate: candidate.instance_id)
        chosen = next((c for c in ordered if c.instance_id > self._last), ordered[0])
        self._last = chosen.instance_id
        return chosen


class ShortestQueueRouter:
    """JSQ: the least loaded candidate. The first id wins a tie, so the choice is repeatable."""

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None:
        return min(candidates, key=lambda candidate: (candidate.queue_length, candidate.instance_id), default=None)


class FewChoicesRouter:
    """JSQ(d): the least loaded of `num` random candidates; a random one wins a tie.

    Loads are up to one heartbeat old. With plain JSQ many gateways send their sessions to the same instance meanwhile;
    fewer choices avoid that (Mitzenmacher, "How useful is old information?", 2000). Two choices often miss an idle
    instance, eight rarely do.
    """

    def __init__(self, num: int) -> None:
        self._num = num

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None:
        drawn = rng.sample(candidates, min(self._num, len(candidates)))
        return min(drawn, key=lambda candidate: candidate.queue_length, default=None)


class NearShortestQueueRouter:
    """RTT-aware JSQ: the candidate at which a new session gets its first step soonest.

    Estimate: rtt_ms + step_ms x (sessions + 1) / batch. batch: sessions of a step, between 1 and all sessions.
    """

    def choose(self, candidates: Sequence[RoutingCandidate], rng: random.Random) -> RoutingCandidate | None:
        steps = [candidate.load.step_ms for candidate in candidates if candidate.load.step_ms]
        typical_ms = fmean(steps) if steps else 1.0  # for candidates that have not taken a step yet

        def wait(candidate: RoutingCandidate) -> tuple[float, tuple[int, int], str]:
            load, queue_length = candidate.load, candidate.queue_length
            num_sessions = queue_length[0]
            batch = max(1, min(load.batch, num_sessions))
            first_ms = load.rtt_ms + (load.step_ms or typical_ms) * (num_sessions + 1) / batch
            return (first_ms, queue_length, candidate.instance_id)

        return min(candidates, key=wait, default=None)


ROUTERS: dict[str, Callable[[], Router]] = {
    "random": RandomRouter,
    "round-robin": RoundRobinRouter,
    "jsq": ShortestQueueRouter,
    "jsq2": lambda: FewChoicesRouter(2),
    "jsq8": lambda: FewChoicesRouter(8),
    "rtt-jsq": NearShortestQueueRouter,
}
