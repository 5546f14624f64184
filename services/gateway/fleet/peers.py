"""The live instances, what they serve and their load, from heartbeats.

Invariant: an instance is a candidate only while its newest heartbeat is younger than three of its own intervals and
does not say that it is draining. Of a verifier's or drafter's name only the newest instances count, so that the holder
of one name, the least that a NATS key grants, is one choice among many. No I/O and no clock: every call gets `now` in
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.policies.routing import RoutingCandidate
from shared.protocol.messages import Heartbeat, Service
from shared.protocol.subjects import instance_name
from shared.timing import silence_s

MAX_PEERS = 4096  # further instances are ignored
LAG_S = 0.02  # heartbeat propagation allowance beyond the round trip, seconds
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

    @property
    def stale_at(self) -> float:
        return self.heard_at + silence_s(self.heartbeat.interval_s)

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

    def renewed(self, heartbeat: Heartbeat, now: float) -> Peer:
        """The peer with a newer heartbeat. Changes that the sender learned while that heartbeat travelled are not in
        it yet; the travel time is a drafter's round trip to its verifiers, since gateways stand next to them."""
        sent_at = now - min(heartbeat.load.rtt_ms / 1e3, heartbeat.interval_s) - LAG_S
        known = [(at, change) for at, change in self.known if at > sent_at]
        since = sum((change for _, change in known), self.unknown)
        return Peer(heartbeat, now, self.unknown, known, since, self.num_own)


class PeerFleet:
    """The verifiers, drafters and controllers whose heartbeats a gateway receives."""

    def __init__(self, instances_per_name: int = 1) -> None:
        self._instances_per_name = instances_per_name
        self._peers: dict[str, Peer] = {}
        self._of_name: dict[tuple[Service, str], list[str]] = {}  # ids of verifiers and drafters, the newest last
        self._replaced: dict[str, None] = {}  # ids that newer ones of their name have replaced, the newest last
        self._gone: list[str] = []  # replaced since the last `expire`

    def observe(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a heartbeat; True if it makes an instance available for sessions."""
        if heartbeat.service not in KNOWN or heartbeat.instance_id in self._replaced:
            return False
        known = self._peers.get(heartbeat.instance_id)
        if known is None and not self._admit(heartbeat):
            return False
        self._peers[heartbeat.instance_id] = known.renewed(heartbeat, now) if known else Peer(heartbeat, now)
        was_candidate = known is not None and not known.heartbeat.draining and now < known.stale_at
        return heartbeat.service in WORKERS and not heartbeat.draining and not was_candidate

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
            for peer in self._serving(service, model, now)
            if peer.heartbeat.max_context >= context and peer.heartbeat.vocab_size >= vocab_size
        ]

    def max_context(self, model: str, now: float) -> int:
        """The longest context in tokens that a live verifier of the model offers; 0 if there is none."""
        return max((peer.heartbeat.max_context for peer in self._serving("verifier", model, now)), default=0)

    def vocab_size(self, model: str, now: float) -> int:
        """The most token ids that a live verifier of the model knows; 0 if there is none."""
        return max((peer.heartbeat.vocab_size for peer in self._serving("verifier", model, now)), default=0)

    def count_alive(self, service: Service, now: float) -> int:
        return len(self.alive(service, now))

    def _admit(self, heartbeat: Heartbeat) -> bool:
        """Makes room for a new instance; False if there is none. It replaces the oldest one of its name."""
        ids = self._of_name.get(_name(heartbeat), [])
        if heartbeat.service in WORKERS and len(ids) >= self._instances_per_name:
            self._replace(ids[0])
        if len(self._peers) >= MAX_PEERS:
            return False
        if heartbeat.service in WORKERS:
            self._of_name.setdefault(_name(heartbeat), []).append(heartbeat.instance_id)
        return True

    def _replace(self, instance_id: str) -> None:
        self._forget(self._peers.pop(instance_id).heartbeat)
        self._replaced[instance_id] = None
        if len(self._replaced) > MAX_PEERS:
            del self._replaced[next(iter(self._replaced))]
        if len(self._gone) < MAX_PEERS:
            self._gone.append(instance_id)

    def _forget(self, heartbeat: Heartbeat) -> None:
        if (ids := self._of_name.get(_name(heartbeat))) is not None:
            ids.remove(heartbeat.instance_id)
            if not ids:
                del self._of_name[_name(heartbeat)]

    def _serving(self, service: Service, model: str, now: float) -> list[Peer]:
        alive = self.alive(service, now)
        return [peer for peer in alive if model in peer.heartbeat.models and not peer.heartbeat.draining]


def _name(heartbeat: Heartbeat) -> tuple[Service, str]:
    return heartbeat.service, instance_name(heartbeat.instance_id)
