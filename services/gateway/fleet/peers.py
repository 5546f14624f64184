"""The live instances, what they serve and their load, from heartbeats.

Invariant: an instance is a candidate only while its newest heartbeat is younger than three of its own intervals and
does not say that it is draining. Of a name only the newest instances count, so that the holder of one name, the least
that a NATS key grants, is one choice among many; and a name has news at most every NEWS_S, however often it starts
anew. No I/O and no clock: every call gets `now` in seconds.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from services.gateway.fleet.names import id_range
from shared.policies.routing import RoutingCandidate
from shared.protocol.messages import Heartbeat, Service
from shared.protocol.subjects import instance_name
from shared.timing import silence_s

MAX_PEERS = 4096  # further instances are ignored
MAX_CONTROLLERS = 64  # of one name, which replicas share
MAX_REPLACED = 64  # ids of a name that are remembered as replaced
MAX_CHOICES = 64  # instances that a router compares at once
MAX_LOOKS = 256  # instances that a search looks at if none of the first ones suits
NEWS_S = 0.1
LAG_S = 0.02  # heartbeat propagation allowance beyond the round trip, seconds
MAX_TRAVEL_S = 2.0  # of a heartbeat, whatever round trip it tells
WORKERS: tuple[Service, ...] = ("verifier", "drafter")  # services that take sessions
KNOWN: tuple[Service, ...] = (*WORKERS, "controller")  # controllers are only listed


@dataclass(frozen=True, slots=True)
class Change:
    """Sessions given to an instance (negative: taken away), and the KV cache that they reserve."""

    num_sessions: int
    kv_tokens: int = 0

    def __add__(self, other: Change) -> Change:
        return Change(self.num_sessions + other.num_sessions, self.kv_tokens + other.kv_tokens)


NO_CHANGE = Change(0)


@dataclass(slots=True)
class Peer:
    """A verifier, drafter or controller, as its newest heartbeat describes it."""

    heartbeat: Heartbeat
    heard_at: float
    unknown: Change = NO_CHANGE  # assigned sessions that the instance does not know yet
    known: list[tuple[float, Change]] = field(default_factory=list)  # (since when, change)
    since: Change = NO_CHANGE  # changes not yet reflected in `heartbeat`, both kinds
    num_own: int = 0  # sessions that the gateway has there
    stale_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.stale_at = self.heard_at + silence_s(self.heartbeat.interval_s)

    @property
    def candidate(self) -> RoutingCandidate:
        trusted = self.heartbeat.service != "drafter"  # a drafter that claims to be idle gets no more than its share
        num_least, since = 0 if trusted else self.num_own, self.since
        return RoutingCandidate(
            self.heartbeat.instance_id, self.heartbeat.load, since.num_sessions, num_least, since.kv_tokens
        )

    def count(self, change: Change, known_at: float | None) -> None:
        """As PeerFleet.count_sessions."""
        self.num_own = max(0, self.num_own + change.num_sessions)
        if known_at is not None:
            self.known.append((known_at, change))
        elif self.unknown.num_sessions + change.num_sessions < 0:
            return  # the peer has expired and joined again in between
        else:
            self.unknown += change
        self.since += change

    def renew(self, heartbeat: Heartbeat, now: float) -> None:
        """Takes a newer heartbeat. Changes that the sender learned while it travelled are not in it yet; the travel
        time is a drafter's round trip to its verifiers, since gateways stand next to them."""
        self.heartbeat, self.heard_at = heartbeat, now
        self.stale_at = now + silence_s(heartbeat.interval_s)
        if self.known:
            travel_s = min(heartbeat.load.rtt_ms / 1e3, heartbeat.interval_s, MAX_TRAVEL_S)
            sent_at = now - travel_s - LAG_S
            self.known = [(at, change) for at, change in self.known if at > sent_at]
            self.since = sum((change for _, change in self.known), self.unknown)

    def may_serve(self, now: float) -> bool:
        return now < self.stale_at and not self.heartbeat.draining


@dataclass(slots=True)
class Name:
    """The instances of a configured name, as ids, the newest last."""

    ids: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)  # by newer ones, for as long as any instance lives
    news_at: float = -NEWS_S

    def replace(self, instance_id: str) -> None:
        self.ids.remove(instance_id)
        self.replaced = [*self.replaced[1 - MAX_REPLACED :], instance_id]


class PeerFleet:
    """The verifiers, drafters and controllers whose heartbeats a gateway receives."""

    def __init__(self, instances_per_name: int = 1) -> None:
        self._instances_per_name = instances_per_name
        self._peers: dict[str, Peer] = {}
        self._serving: dict[tuple[Service, str], list[str]] = {}  # ids in order, by service and model
        self._nums: Counter[Service] = Counter()
        self._names: dict[tuple[Service, str], Name] = {}
        self._gone: list[str] = []  # replaced since the last `expire`

    def observe(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a heartbeat; True if it makes an instance available for sessions that was not there."""
        if heartbeat.service not in KNOWN:
            return False
        peer = self._peers.get(heartbeat.instance_id)
        if peer is None:
            return self._join(heartbeat, now)
        if peer.heartbeat.service != heartbeat.service:
            return False
        was_stale = now >= peer.stale_at
        if peer.heartbeat.models != heartbeat.models:
            self._unlist(peer.heartbeat)
            self._list(heartbeat)
        peer.renew(heartbeat, now)
        return was_stale and self._is_news(heartbeat, now)

    def expire(self, now: float) -> list[str]:
        """Removes the instances whose heartbeat is stale or that newer ones have replaced, and returns their ids."""
        gone, self._gone = self._gone, []
        for instance_id in [instance_id for instance_id, peer in self._peers.items() if now >= peer.stale_at]:
            self._forget(self._peers.pop(instance_id).heartbeat)
            gone.append(instance_id)
        return gone

    def count_sessions(self, instance_id: str, num: int, known_at: float | None, kv_tokens: int = 0) -> None:
        """Adds `num` sessions (negative: removes) and the KV cache that they reserve to an instance's load until its
        heartbeats can include them. known_at: when the instance learns of the change; None: it does not know yet."""
        if instance_id in self._peers:
            self._peers[instance_id].count(Change(num, kv_tokens), known_at)

    def find(self, instance_id: str, now: float) -> Heartbeat | None:
        """The newest heartbeat of an instance that is alive, draining or not."""
        peer = self._peers.get(instance_id)
        return peer.heartbeat if peer and now < peer.stale_at else None

    def alive(self, service: Service, now: float) -> list[Peer]:
        """The live instances of a service ordered by id, draining or not."""
        alive = (peer for peer in self._peers.values() if peer.heartbeat.service == service and now < peer.stale_at)
        return sorted(alive, key=lambda peer: peer.heartbeat.instance_id)

    def is_alive(self, instance_id: str, now: float) -> bool:
        return self.find(instance_id, now) is not None

    def choices(
        self, service: Service, model: str, now: float, context: int = 0, vocab_size: int = 0
    ) -> list[RoutingCandidate]:
        """The live instances that may take a session for `model` with `context` tokens of this vocabulary."""
        return [
            peer.candidate
            for peer in self._able(service, model, now)
            if peer.heartbeat.max_context >= context and peer.heartbeat.vocab_size >= vocab_size
        ]

    def some_choices(
        self,
        service: Service,
        model: str,
        now: float,
        rng: random.Random,
        suits: Callable[[Heartbeat], bool],
        names: Sequence[str] | None = None,
    ) -> list[RoutingCandidate]:
        """At most MAX_CHOICES live instances that suit a session for `model`, of those of these `names` (names.py).

        Draws MAX_CHOICES at random. If none of them suits, it draws MAX_LOOKS. So a search costs the same in any fleet,
        and one that is repeated finds whom there is.
        """
        ids = self._named(service, model, names)
        for num in (MAX_CHOICES, MAX_LOOKS):
            drawn = ids if len(ids) <= num else rng.sample(ids, num)
            found = self._suited(drawn, now, suits)
            if found or len(drawn) == len(ids):
                break
        return found

    def serves(self, service: Service, name: str, model: str, now: float) -> bool:
        """Whether an instance of this name may take a session for the model."""
        ids = self._names[service, name].ids if (service, name) in self._names else []
        peers = (self._peers[instance_id] for instance_id in ids)
        return any(model in peer.heartbeat.models and peer.may_serve(now) for peer in peers)

    def max_context(self, model: str, now: float) -> int:
        """The longest context in tokens that a live verifier of the model offers; 0 if there is none."""
        return max((peer.heartbeat.max_context for peer in self._able("verifier", model, now)), default=0)

    def vocab_size(self, model: str, now: float) -> int:
        """The most token ids that a live verifier of the model knows; 0 if there is none."""
        return max((peer.heartbeat.vocab_size for peer in self._able("verifier", model, now)), default=0)

    def count(self, service: Service) -> int:
        """The known instances of a service. Stale ones count until `expire`."""
        return self._nums[service]

    def _join(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a new instance's first heartbeat. It replaces the oldest one of its name, unless it is about to end.
        True as `observe`."""
        key = heartbeat.service, instance_name(heartbeat.instance_id)
        name = self._names.get(key, Name())
        is_full = len(name.ids) >= (self._instances_per_name if heartbeat.service in WORKERS else MAX_CONTROLLERS)
        if heartbeat.instance_id in name.replaced or (is_full and (heartbeat.draining or now < name.news_at + NEWS_S)):
            return False
        if is_full:
            self._replace(name)
        elif len(self._peers) >= MAX_PEERS:
            return False
        self._names[key] = name
        name.ids.append(heartbeat.instance_id)
        self._peers[heartbeat.instance_id] = Peer(heartbeat, now)
        self._nums[heartbeat.service] += 1
        self._list(heartbeat)
        return self._is_news(heartbeat, now)

    def _is_news(self, heartbeat: Heartbeat, now: float) -> bool:
        name = self._names[heartbeat.service, instance_name(heartbeat.instance_id)]
        is_late_enough = now >= name.news_at + NEWS_S
        if is_late_enough:
            name.news_at = now
        return is_late_enough and heartbeat.service in WORKERS and not heartbeat.draining

    def _replace(self, name: Name) -> None:
        instance_id = name.ids[0]
        name.replace(instance_id)
        self._drop(self._peers.pop(instance_id).heartbeat)
        self._gone.append(instance_id)

    def _forget(self, heartbeat: Heartbeat) -> None:
        """Removes a stale instance, and its name with the last one."""
        key = heartbeat.service, instance_name(heartbeat.instance_id)
        self._names[key].ids.remove(heartbeat.instance_id)
        if not self._names[key].ids:
            del self._names[key]
        self._drop(heartbeat)

    def _drop(self, heartbeat: Heartbeat) -> None:
        self._nums[heartbeat.service] -= 1
        self._unlist(heartbeat)

    def _list(self, heartbeat: Heartbeat) -> None:
        for model in dict.fromkeys(heartbeat.models):
            insort(self._serving.setdefault((heartbeat.service, model), []), heartbeat.instance_id)

    def _unlist(self, heartbeat: Heartbeat) -> None:
        for model in dict.fromkeys(heartbeat.models):
            ids = self._serving[heartbeat.service, model]
            del ids[bisect_left(ids, heartbeat.instance_id)]
            if not ids:
                del self._serving[heartbeat.service, model]

    def _able(self, service: Service, model: str, now: float) -> list[Peer]:
        """The live instances that may take sessions for a model, in the order of their ids."""
        peers = (self._peers[instance_id] for instance_id in self._serving.get((service, model), ()))
        return [peer for peer in peers if peer.may_serve(now)]

    def _named(self, service: Service, model: str, names: Sequence[str] | None) -> Sequence[str]:
        """Ids of the instances for `model` that have these names. Stale and draining ones are among them."""
        ids = self._serving.get((service, model), [])
        if names is None:
            return ids
        spans = [(bisect_left(ids, first), bisect_left(ids, end)) for first, end in map(id_range, names)]
        return list(dict.fromkeys(instance_id for first, end in spans for instance_id in ids[first:end]))

    def _suited(self, ids: Iterable[str], now: float, suits: Callable[[Heartbeat], bool]) -> list[RoutingCandidate]:
        peers = (self._peers[instance_id] for instance_id in ids)
        found = (peer.candidate for peer in peers if peer.may_serve(now) and suits(peer.heartbeat))
        return list(islice(found, MAX_CHOICES))
