"""Who is alive, what it serves and how busy it is, from heartbeats.

Invariant: an instance is offered as a candidate only while its newest heartbeat is younger than three of its own
intervals and does not say that it is draining. No I/O and no clock: every call gets `now` in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.policies.routing import Candidate
from shared.protocol.messages import Heartbeat, Service

STALE_INTERVALS = 3
MAX_PEERS = 4096  # heartbeats of more instances than that are not remembered
LAG_S = 0.02  # beyond the round trip, until what an instance is told of is in its heartbeats here
WORKERS = ("verifier", "drafter")  # may be given sessions; controllers are only told of


@dataclass(slots=True)
class Peer:
    """A verifier, drafter or controller, as its newest heartbeat describes it."""

    heartbeat: Heartbeat
    heard_at: float
    num_untold: int = 0  # sessions given to it that it hasn't been told of
    told: list[tuple[float, int]] = field(default_factory=list)  # when of how many more or fewer, since that heartbeat
    num_since: int = 0  # of both

    @property
    def stale_at(self) -> float:
        return self.heard_at + STALE_INTERVALS * self.heartbeat.interval_s

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.heartbeat.instance_id, self.heartbeat.load, self.num_since)

    def count_sessions(self, num: int, told_at: float | None) -> None:
        if told_at is None:
            num = max(num, -self.num_untold)  # it may have been forgotten meanwhile, and come back
            self.num_untold += num
        else:
            self.told.append((told_at, num))
        self.num_since += num

    def renewed(self, heartbeat: Heartbeat, now: float) -> Peer:
        """With a newer heartbeat, whose sender had not heard yet what it was told while this was on its way. That is a
        drafter's round trip to its verifiers, beside which gateways stand."""
        on_its_way = now - min(heartbeat.load.rtt_ms / 1e3, heartbeat.interval_s) - LAG_S
        told = [(at, num) for at, num in self.told if at > on_its_way]
        return Peer(heartbeat, now, self.num_untold, told, self.num_untold + sum(num for _, num in told))


class Fleet:
    """The verifiers, drafters and controllers that a gateway hears."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def observe(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes a heartbeat; True when it brings an instance that could not be chosen before it."""
        if heartbeat.service not in (*WORKERS, "controller"):
            return False
        known = self._peers.get(heartbeat.instance_id)
        if known is None and len(self._peers) >= MAX_PEERS:
            return False
        self._peers[heartbeat.instance_id] = known.renewed(heartbeat, now) if known else Peer(heartbeat, now)
        was_candidate = known is not None and not known.heartbeat.draining and now < known.stale_at
        return heartbeat.service in WORKERS and not heartbeat.draining and not was_candidate

    def expire(self, now: float) -> list[str]:
        """Forgets the instances whose heartbeat is stale, and names them."""
        stale = [instance_id for instance_id, peer in self._peers.items() if now >= peer.stale_at]
        for instance_id in stale:
            del self._peers[instance_id]
        return stale

    def count_sessions(self, instance_id: str, num: int, told_at: float | None) -> None:
        """Notes sessions given to an instance, or taken from it where `num` is negative: those that are placed next
        see it until a heartbeat can know. `told_at`: when the instance hears of it; None where it doesn't yet."""
        if instance_id in self._peers:
            self._peers[instance_id].count_sessions(num, told_at)

    def find(self, instance_id: str, now: float) -> Heartbeat | None:
        """The newest heartbeat of an instance that is alive, draining or not."""
        peer = self._peers.get(instance_id)
        return peer.heartbeat if peer and now < peer.stale_at else None

    def alive(self, service: Service, now: float) -> list[Peer]:
        """The live instances of a service by their ids, draining or not."""
        return [
            peer for _, peer in sorted(self._peers.items()) if peer.heartbeat.service == service and now < peer.stale_at
        ]

    def is_alive(self, instance_id: str, now: float) -> bool:
        return self.find(instance_id, now) is not None

    def choices(self, service: Service, model: str, now: float, context: int = 0) -> list[Candidate]:
        """The instances of a service that work for `model`, with room for `context` tokens, and may take a session."""
        return [
            peer.candidate
            for _, peer in sorted(self._peers.items())
            if self._serves(peer, service, model, now) and peer.heartbeat.max_context >= context
        ]

    def max_context(self, model: str, now: float) -> int:
        """The longest context that some live verifier of the model offers, in tokens; 0 when there is none."""
        return max((beat.max_context for beat in self._verifiers(model, now)), default=0)

    def vocab_size(self, model: str, now: float) -> int:
        """Number of token ids that every live verifier of the model knows; 0 when there is none."""
        return min((beat.vocab_size for beat in self._verifiers(model, now)), default=0)

    def count_alive(self, service: Service, now: float) -> int:
        return sum(peer.heartbeat.service == service and now < peer.stale_at for peer in self._peers.values())

    def _verifiers(self, model: str, now: float) -> list[Heartbeat]:
        return [peer.heartbeat for peer in self._peers.values() if self._serves(peer, "verifier", model, now)]

    @staticmethod
    def _serves(peer: Peer, service: Service, model: str, now: float) -> bool:
        beat = peer.heartbeat
        return beat.service == service and model in beat.models and not beat.draining and now < peer.stale_at
