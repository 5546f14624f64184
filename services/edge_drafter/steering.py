"""The window that a drafter uses for each verifier: the leading controller's decision, else the default.

Controllers share the drafters by rendezvous hashing (Thaler and Ravishankar 1996): each drafter ranks them in an order
of its own. The first leads, and the second decides too, so that it knows the pairs when it has to take over.

Invariant: a leader leads until its heartbeats stop or say that it drains, or until the first in the order has been
named in WARM_UP_REPORTS in a row. One that tells nothing on MOST_UNTOLD reports comes last. Decisions of other
controllers, and outdated ones, change nothing. Without a valid decision the default holds. Times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import Heartbeat, WindowDecision
from shared.timing import silence_s

MAX_CONTROLLERS = 64
MAX_PAIRS = 1024
NUM_DECIDING = 2  # controllers that decide for a drafter
WARM_UP_REPORTS = 40  # after which a controller that has come knows the pairs: about 10 s of drafting
MOST_UNTOLD = 256  # reports without a decision, about a minute of drafting: the longest pause between repeats


@dataclass(slots=True)
class LiveController:
    """Lives until a time, or the next heartbeat. num_named: reports that named it; num_untold: reports since its last
    decision, while it leads."""

    weight: bytes
    until: float
    num_named: int = 0
    num_untold: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision in force until `expires_at`."""

    choice: WindowChoice
    controller_id: str
    sequence: int
    expires_at: float


class Steering:
    """The windows of one drafter, per verifier."""

    def __init__(self, drafter_id: str, ttl_ms: float) -> None:
        self._drafter_id = drafter_id
        self._ttl_ms = ttl_ms
        self._alive: dict[str, LiveController] = {}
        self._leader: str | None = None
        self._decided: dict[str, Decided] = {}

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        controller_id, until = heartbeat.instance_id, now + silence_s(heartbeat.interval_s) * 1e3
        if heartbeat.draining:
            self._alive.pop(controller_id, None)
        self._remove_silent(now)
        if heartbeat.draining:
            return
        if controller_id in self._alive:
            self._alive[controller_id].until = until
        elif len(self._alive) < MAX_CONTROLLERS:
            self._alive[controller_id] = LiveController(weight(controller_id, self._drafter_id), until)

    def leader(self, now: float) -> str | None:
        """The controller to follow; None if none is alive."""
        self._remove_silent(now)
        if self._leader is None:
            self._leader = next(iter(self._ranked()), None)
        return self._leader

    def named(self, now: float) -> tuple[str, ...]:
        """The controllers that are to decide on the next report, the leader first; none if none is alive.
        Once a report, since it counts them."""
        leader, ranked = self.leader(now), self._ranked()
        if leader is None:
            return ()
        if self._alive[ranked[0]].num_named >= WARM_UP_REPORTS:
            leader = self._leader = ranked[0]
        named = (leader, *(key for key in ranked if key != leader))[:NUM_DECIDING]
        for key, controller in self._alive.items():
            controller.num_named = controller.num_named + 1 if key in named else 0
        self._alive[leader].num_untold += 1
        return named

    def _ranked(self) -> list[str]:
        def place(key: str) -> tuple[bool, bytes]:
            return self._alive[key].num_untold < MOST_UNTOLD, self._alive[key].weight

        return sorted(self._alive, key=place, reverse=True)

    def _remove_silent(self, now: float) -> None:
        self._alive = {key: each for key, each in self._alive.items() if each.until > now}
        if self._leader not in self._alive:
            self._leader = None

    def decide(self, decision: WindowDecision, sender: str, now: float) -> bool:
        """Takes a decision. Returns False if it is not the leader's, not newer, or invalid."""
        leader = self.leader(now)
        known = self._decided.get(decision.verifier_id)
        if leader is not None and sender != leader:
            return False
        if leader is not None:
            self._alive[leader].num_untold = 0
        if known and known.controller_id == sender and decision.sequence <= known.sequence:
            return False
        if known is None and len(self._decided) >= MAX_PAIRS:
            return False
        try:
            choice = WindowChoice(decision.window, decision.chunk, decision.free_run, decision.min_confidence)
        except ValueError:
            return False
        self._decided[decision.verifier_id] = Decided(choice, sender, decision.sequence, now + self._ttl_ms)
        return True

    def choice(self, verifier_id: str, now: float) -> WindowChoice:
        decided = self._decided.get(verifier_id)
        return decided.choice if decided and now < decided.expires_at else DEFAULT_CHOICE

    def expire(self, now: float) -> list[str]:
        """Drops expired decisions and returns their verifiers, for which the default holds again."""
        old = [verifier_id for verifier_id, decided in self._decided.items() if now >= decided.expires_at]
        for verifier_id in old:
            del self._decided[verifier_id]
        return old


def weight(controller_id: str, drafter_id: str) -> bytes:
    """The drafter prefers controllers of higher weight."""
    return blake2b(f"{controller_id} {drafter_id}".encode(), digest_size=8).digest()
