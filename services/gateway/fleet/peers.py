"""The live instances, what they serve and their load, from heartbeats.

Invariant: an instance is a candidate only while its newest heartbeat is younger than three of its own intervals and
does not say that it is draining. Of a name only the newest instances count (shared/protocol/instances.py). An instance
joins at most once in PAUSE_S, whatever its heartbeats say. No I/O and no clock: every call gets `now` in seconds.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from services.gateway.fleet.missing import LostPeer
from services.gateway.fleet.names import id_range
from shared.policies.routing import RoutingCandidate
from shared.protocol.instances import PAUSE_S, NewestInstances
from shared.protocol.messages import Heartbeat, Service
from shared.protocol.subjects import OWNED, instance_name, is_owned
from shared.timing import silence_s

MAX_PEERS = 4096  # further instances are ignored
CONTROLLERS_PER_NAME = 16  # they share one
MAX_CHOICES = 64  # instances that a router compares at once
MAX_LOOKS = 256  # instances that a search looks at if none of the first ones suits
LAG_S = 0.02  # heartbeat propagation allowance beyond the round trip, seconds
BACK_S = 5.0  # a verifier that fell silent is expected back so long: NATS may hang, or its server may restart
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
    joined_at: float = -math.inf
    stale_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.stale_at = self.heard_at + silence_s(self.heartbeat.interval_s)

    def count(self, change: Change, known_at: float | None) -> None:
        """As PeerFleet.count_sessions."""
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


class PeerFleet:
    """The verifiers, drafters and controllers whose heartbeats a gateway receives."""

    def __init__(self, instances_per_name: int = 1) -> None:
        self._peers: dict[str, Peer] = {}
        self._serving: dict[tuple[Service, str], list[str]] = {}  # ids in order, by service and model
        self._nums: Counter[Service] = Counter()
        per_name = dict.fromkeys(WORKERS, instances_per_name) | {"controller": CONTROLLERS_PER_NAME}
        self._newest = {service: NewestInstances(per_name[service]) for service in KNOWN}
        self._gone: list[str] = []  # replaced since the last `expire`
        self._lost: list[LostPeer] = []  # since the last `take_lost`
        self._left_at: dict[str, float] = {}  # when a verifier of a model was lost, of the last BACK_S
        self._own: Counter[str] = Counter()  # the gateway's sessions by name, those of replaced instances too

    def observe(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a heartbeat; True if it makes an instance available for sessions."""
        if heartbeat.service not in KNOWN:
            return False
        peer = self._peers.get(heartbeat.instance_id)
        if peer is None:
            if not self._admit(heartbeat, now):
                return False
            peer, was_candidate = self._add(Peer(heartbeat, now)), False
        elif peer.heartbeat.service != heartbeat.service:
            return False
        else:
            was_candidate = peer.may_serve(now)
            self._renew(peer, heartbeat, now)
        joins = heartbeat.service in WORKERS and not heartbeat.draining and not was_candidate
        if not joins or now - peer.joined_at < PAUSE_S:
            return False
        peer.joined_at = now
        return True

    def expire(self, now: float) -> list[str]:
        """Removes the instances whose heartbeat is stale or that newer ones have replaced, and returns their ids."""
        gone, self._gone = self._gone, []
        self._left_at = {model: at for model, at in self._left_at.items() if now - at < BACK_S}
        for peer in [peer for peer in self._peers.values() if now >= peer.stale_at]:
            self._newest[peer.heartbeat.service].leave(peer.heartbeat.instance_id)
            self._lose(peer)
            if peer.heartbeat.service == "verifier" and not peer.heartbeat.draining:
                self._left_at |= dict.fromkeys(peer.heartbeat.models, now)
            gone.append(peer.heartbeat.instance_id)
        return gone

    def take_lost(self) -> list[LostPeer]:
        """The instances that left since the last call without saying that they drain."""
        lost, self._lost = self._lost, []
        return lost

    def knows(self, peer: LostPeer) -> bool:
        """Whether an instance of that name is known."""
        return bool(self._newest[peer.service].ids_of(peer.name))

    def count_sessions(self, instance_id: str, num: int, known_at: float | None, kv_tokens: int = 0) -> None:
        """Adds `num` sessions (negative: removes) and the KV cache that they reserve to an instance's load until its
        heartbeats can include them. known_at: when the instance learns of the change; None: it does not know yet."""
        name = instance_name(instance_id)
        self._own[name] += num
        if not self._own[name]:
            del self._own[name]
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
            self._candidate(peer)
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
        peers = (self._peers[instance_id] for instance_id in self._newest[service].ids_of(name))
        return any(model in peer.heartbeat.models and peer.may_serve(now) for peer in peers)

    def max_context(self, model: str, now: float) -> int:
        """The longest context in tokens that a live verifier of the model offers; 0 if there is none."""
        return max((peer.heartbeat.max_context for peer in self._able("verifier", model, now)), default=0)

    def has_just_lost(self, model: str, now: float) -> bool:
        """Whether there is no verifier of the model, and one was lost less than BACK_S ago: most likely the bus hangs,
        and its next heartbeat is on its way."""
        peers = [self._peers[instance_id] for instance_id in self._serving.get(("verifier", model), ())]
        if any(peer.may_serve(now) for peer in peers):
            return False
        is_stale = any(peer.stale_at <= now < peer.stale_at + BACK_S and not peer.heartbeat.draining for peer in peers)
        return is_stale or now - self._left_at.get(model, -math.inf) < BACK_S

    def vocab_size(self, model: str, now: float) -> int:
        """The most token ids that a live verifier of the model knows; 0 if there is none."""
        return max((peer.heartbeat.vocab_size for peer in self._able("verifier", model, now)), default=0)

    def count(self, service: Service) -> int:
        """The known instances of a service. Stale ones count until `expire`."""
        return self._nums[service]

    def _candidate(self, peer: Peer) -> RoutingCandidate:
        """Whatever a drafter says of its load, the gateway's own sessions at its name count."""
        heartbeat, since, num_own = peer.heartbeat, peer.since, 0
        if heartbeat.service == "drafter":
            name = instance_name(heartbeat.instance_id)
            num_own = self._own[name] // len(self._newest["drafter"].ids_of(name))
        return RoutingCandidate(heartbeat.instance_id, heartbeat.load, since.num_sessions, num_own, since.kv_tokens)

    def _admit(self, heartbeat: Heartbeat, now: float) -> bool:
        """Makes room for a new instance; False if there is none. It replaces the oldest one of its name, unless it is
        about to end."""
        newest, instance_id = self._newest[heartbeat.service], heartbeat.instance_id
        if not newest.may_join(instance_id, now) or (heartbeat.draining and newest.is_full(instance_id)):
            return False
        replaced = newest.join(instance_id, now)
        if replaced is not None:
            self._lose(self._peers[replaced])
            self._gone.append(replaced)
        if len(self._peers) >= MAX_PEERS:
            newest.leave(instance_id)
            return False
        return True

    def _add(self, peer: Peer) -> Peer:
        self._peers[peer.heartbeat.instance_id] = peer
        self._nums[peer.heartbeat.service] += 1
        self._list(peer.heartbeat)
        return peer

    def _lose(self, peer: Peer) -> None:
        if not peer.heartbeat.draining:
            self._lost.append(LostPeer(peer.heartbeat.service, instance_name(peer.heartbeat.instance_id)))
        self._remove(peer)

    def _remove(self, peer: Peer) -> None:
        del self._peers[peer.heartbeat.instance_id]
        self._nums[peer.heartbeat.service] -= 1
        self._unlist(peer.heartbeat)

    def _renew(self, peer: Peer, heartbeat: Heartbeat, now: float) -> None:
        if peer.heartbeat.models != heartbeat.models:
            self._unlist(peer.heartbeat)
            self._list(heartbeat)
        peer.renew(heartbeat, now)

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
        owned = _span(ids, f"{OWNED}*")
        if names is None:
            return ids if not owned else [*ids[: owned.start], *ids[owned.stop :]]
        spans = [part for name in names for part in _apart(_span(ids, name), range(0) if is_owned(name) else owned)]
        return list(dict.fromkeys(instance_id for span in spans for instance_id in ids[span.start : span.stop]))

    def _suited(self, ids: Iterable[str], now: float, suits: Callable[[Heartbeat], bool]) -> list[RoutingCandidate]:
        peers = (self._peers[instance_id] for instance_id in ids)
        found = (self._candidate(peer) for peer in peers if peer.may_serve(now) and suits(peer.heartbeat))
        return list(islice(found, MAX_CHOICES))


def _span(ids: Sequence[str], name: str) -> range:
    """The places of the ids that an entry of a list of names stands for."""
    first, end = id_range(name)
    return range(bisect_left(ids, first), bisect_left(ids, end))


def _apart(span: range, hidden: range) -> tuple[range, range]:
    """What of a span lies before and behind another one."""
    return range(span.start, min(span.stop, hidden.start)), range(max(span.start, hidden.stop), span.stop)
