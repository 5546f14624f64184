"""The live verifiers, by their heartbeats, and what a report can say of one.

Invariant: at most `max_verifiers`, and of a name only the newest (shared/protocol/instances.py). Times are seconds of
one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from shared.protocol.instances import NewestInstances
from shared.protocol.messages import Heartbeat, Load, PairReport
from shared.timing import silence_s

LONGER, SHORTER = 2.0, 8.0  # than its verifier tells, a reported pass may be
SPARE_SESSIONS = 4  # reported beyond twice those that a verifier tells: heartbeats are older than reports


@dataclass(frozen=True, slots=True)
class LiveVerifier:
    """A verifier, as its newest heartbeat describes it."""

    load: Load
    machine: str  # "": unknown
    alive_until: float

    def corrected(self, seen: PairReport, machine: str) -> PairReport:
        """The report of a drafter on `machine`, with what no verifier with these limits can have shown brought within
        them: pairs of one verifier share what is learned about it, so that a drafter that lies would shift the windows
        of the others.

        A heartbeat without a figure limits nothing.
        """
        shares_machine = bool(machine) and machine == self.machine
        if seen.shares_machine != shares_machine:
            seen = replace(seen, shares_machine=shares_machine)
        load = self.load
        if load.max_sessions:
            most = min(2 * load.num_sessions + SPARE_SESSIONS, load.max_sessions)
            seen = replace(seen, num_sessions=min(seen.num_sessions, most))
        if load.token_budget:
            seen = replace(seen, pass_tokens=min(seen.pass_tokens, load.token_budget))
        if load.step_ms and load.prefill_ms and seen.pass_ms:
            longest_ms = LONGER * (load.step_ms + load.prefill_ms * seen.pass_tokens)
            seen = replace(seen, pass_ms=min(max(seen.pass_ms, load.step_ms / SHORTER), longest_ms))
        return seen


class LiveVerifiers:
    """The verifiers with a recent heartbeat."""

    def __init__(self, max_verifiers: int, instances_per_name: int = 1) -> None:
        self._max_verifiers = max_verifiers
        self._newest = NewestInstances(instances_per_name)
        self._live: dict[str, LiveVerifier] = {}

    def hear(self, heartbeat: Heartbeat, now: float) -> bool:
        """Records a heartbeat; False if the verifier is new and there is no room for it."""
        instance_id = heartbeat.instance_id
        if instance_id not in self._live:
            if not self._newest.may_join(instance_id, now):
                return False
            self._live.pop(self._newest.join(instance_id, now) or "", None)
            if len(self._live) >= self._max_verifiers:
                self._newest.leave(instance_id)
                return False
        self._live[instance_id] = LiveVerifier(heartbeat.load, heartbeat.machine, now + silence_s(heartbeat.interval_s))
        return True

    def is_live(self, verifier_id: str, now: float) -> bool:
        found = self._live.get(verifier_id)
        return found is not None and found.alive_until > now

    def corrected(self, seen: PairReport, machine: str) -> PairReport:
        """The report of a drafter on `machine`, as far as its verifier's newest heartbeat allows it."""
        found = self._live.get(seen.verifier_id)
        return found.corrected(seen, machine) if found else replace(seen, shares_machine=False)

    def expire(self, now: float) -> None:
        """Removes silent verifiers."""
        for instance_id in [name for name, found in self._live.items() if found.alive_until <= now]:
            del self._live[instance_id]
            self._newest.leave(instance_id)

    def __len__(self) -> int:
        return len(self._live)
