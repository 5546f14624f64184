"""The window that a drafter uses for each verifier: the leading controller's decision, else the default.

Invariant: one controller leads until its heartbeats stop or say that it drains; then the live one with the lowest id
does. Decisions of other controllers, and outdated ones, change nothing. Without a valid decision the default holds.
Times are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import Heartbeat, WindowDecision
from shared.timing import silence_s

MAX_CONTROLLERS = 64
MAX_PAIRS = 1024


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision in force until `expires_at`."""

    choice: WindowChoice
    controller_id: str
    sequence: int
    expires_at: float


class Steering:
    """The windows of one drafter, per verifier."""

    def __init__(self, ttl_ms: float) -> None:
        self._ttl_ms = ttl_ms
        self._alive_until: dict[str, float] = {}
        self._leader: str | None = None
        self._decided: dict[str, Decided] = {}

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        if heartbeat.draining:
            self._alive_until.pop(heartbeat.instance_id, None)
        elif heartbeat.instance_id in self._alive_until or len(self._alive_until) < MAX_CONTROLLERS:
            self._alive_until[heartbeat.instance_id] = now + silence_s(heartbeat.interval_s) * 1e3

    def leader(self, now: float) -> str | None:
        """The controller to follow; None if none is alive."""
        self._alive_until = {key: until for key, until in self._alive_until.items() if until > now}
        if self._leader not in self._alive_until:
            self._leader = min(self._alive_until, default=None)
        return self._leader

    def decide(self, decision: WindowDecision, sender: str, now: float) -> bool:
        """Takes a decision. Returns False if it is not the leader's, not newer, or invalid."""
        leader = self.leader(now)
        known = self._decided.get(decision.verifier_id)
        if leader is not None and sender != leader:
            return False
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
