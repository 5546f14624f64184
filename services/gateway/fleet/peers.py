"""The live instances, what they serve and their load, from heartbeats.

Invariant: an instance is a candidate only while its newest heartbeat is younger than three of its own intervals and
does not say that it is draining. No I/O and no clock: every call gets `now` in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.policies.routing import RoutingCandidate
from shared.protocol.messages import Heartbeat, Service
from shared.timing import STALE_HEARTBEATS

MAX_PEERS = 4096  # further instances are ignored
LAG_S = 0.02  # heartbeat propagation allowance beyond the round trip, seconds
WORKERS = ("verifier", "drafter")  # services that take sessions; controllers are only listed


@dataclass(slots=True)
class Peer:
    """A verifier, drafter or controller, as its newest heartbeat describes it."""

    heartbeat: Heartbeat
    heard_at: float
    num_unknown: int = 0  # assigned sessions that the instance does not know yet
    known_changes: list[tuple[float, int]] = field(default_factory=list)  # (since when known, change)
    num_since: int = 0  # assignment changes not yet reflected in `heartbeat`, both kinds

    @property
    def stale_at(self) -> float:
        return self.heard_at + STALE_HEARTBEATS * self.heartbeat.interval_s

    @property
    def candidate(self) -> RoutingCandidate:
        return RoutingCandidate(self.heartbeat.instance_id, self.heartbeat.load, self.num_since)

    def count_sessions(self, num: int, known_at: float | None) -> None:
        """As PeerFleet.count_sessions."""
        if known_at is None:
            num = max(num, -self.num_unknown)  # the peer may have expired and joined again in between
            self.num_unknown += num
        else:
            self.known_changes.append((known_at, num))
        self.num_since += num

    def renewed(self, heartbeat: Heartbeat, now: float) -> Peer:
        """The peer with a newer heartbeat. Changes that the sender learned while that heartbeat travelled are not in
        it yet; the travel time is a drafter's round trip to its verifiers, since gateways stand next to them."""
        sent_at = now - min(heartbeat.load.rtt_ms / 1e3, heartbeat.interval_s) - LAG_S
        known_changes = [(at, num) for at, num in self.known_changes if at > sent_at]
        return Peer(
            heartbeat, now, self.num_unknown, known_changes, self.num_unknown + sum(num for _, num in known_changes)
        )


class PeerFleet:
    """The verifiers, drafters and controllers whose heartbeats a gateway receives."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def observe(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a heartbeat; True if it makes an instance available for sessions."""
        if heartbeat.service not in (*WORKERS, "controller"):
            return False
        known = self._peers.get(heartbeat.instance_id)
        if known is None and len(self._peers) >= MAX_PEERS:
            return False
        self._peers[heartbeat.instance_id] = known.renewed(heartbeat, now) if known else Peer(heartbeat, now)
        was_candidate = known is not None and not known.heartbeat.draining and now < known.stale_at
        return heartbeat.service in WORKERS and not heartbeat.draining and not was_candidate

    def expire(self, now: float) -> list[str]:
        """Removes the instances whose heartbeat is stale, and returns their ids."""
        stale = [instance_id for instance_id, peer in self._peers.items() if now >= peer.stale_at]
        for instance_id in stale:
            del self._peers[instance_id]
        return stale

    def count_sessions(self, instance_id: str, num: int, known_at: float | None) -> None:
        """Adds `num` sessions (negative: removes) to an instance's load until its heartbeats can include them.
        known_at: when the instance learns of the change; None: it does not know yet."""
        if instance_id in self._peers:
            self._peers[instance_id].count_sessions(num, known_at)

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

    def choices(self, service: Service, model: str, now: float, context: int = 0) -> list[RoutingCandidate]:
        """The live instances that may take a session for `model` with `context` tokens."""
        return [peer.candidate for peer in self._serving(service, model, now) if peer.heartbeat.max_context >= context]

    def max_context(self, model: str, now: float) -> int:
        """The longest context in tokens that a live verifier of the model offers; 0 if there is none."""
        return max((peer.heartbeat.max_context for peer in self._serving("verifier", model, now)), default=0)

    def vocab_size(self, model: str, now: float) -> int:
        """Number of token ids that every live verifier of the model knows; 0 if there is none."""
        return min((peer.heartbeat.vocab_size for peer in self._serving("verifier", model, now)), default=0)

    def count_alive(self, service: Service, now: float) -> int:
        return len(self.alive(service, now))

    def _serving(self, service: Service, model: str, now: float) -> list[Peer]:
        alive = self.alive(service, now)
        return [peer for peer in alive if model in peer.heartbeat.models and not peer.heartbeat.draining]
