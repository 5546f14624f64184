"""Which instances the fleet counts one session at, so that sessions placed next see it as load.

Invariant: the session counts once at each instance that has it or is to get it, and nowhere else. It counts until
the instance's own heartbeats can report it: from the first message that names the session, plus the time that a
heartbeat takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.fleet.peers import PeerFleet


@dataclass(slots=True)
class LoadAccounting:
    """The load that one session puts on its peers. Times are in seconds of the fleet's clock.

    KV cache that a session gives back shows in heartbeats alone: a verifier frees it before it hears of the Close.
    """

    fleet: PeerFleet
    kv_tokens: int = 0  # that an instance reserves at which the session counts from now on
    _counted: dict[str, int | None] = field(default_factory=dict)  # by instance; None: it knows the session

    def knows(self, instance_id: str | None) -> bool:
        """Whether the session counts at an instance that has been sent a message about it."""
        return instance_id is not None and self._counted.get(instance_id, 0) is None

    def count_at(self, now: float, *instance_ids: str | None) -> None:
        """The session counts at these instances from now on, and at no other."""
        wanted = {instance_id for instance_id in instance_ids if instance_id is not None}
        for instance_id in wanted - self._counted.keys():
            self._counted[instance_id] = self.kv_tokens
            self.fleet.count_sessions(instance_id, 1, None, self.kv_tokens)
        for instance_id in self._counted.keys() - wanted:
            if (kv_tokens := self._counted.pop(instance_id)) is None:
                self.fleet.count_sessions(instance_id, -1, now)
            else:
                self.fleet.count_sessions(instance_id, -1, None, -kv_tokens)

    def mark_known(self, instance_id: str | None, now: float) -> None:
        """The instance knows the session from now on, and its heartbeats will include it."""
        if instance_id is not None and (kv_tokens := self._counted.get(instance_id)) is not None:
            self._counted[instance_id] = None
            self.fleet.count_sessions(instance_id, -1, None, -kv_tokens)
            self.fleet.count_sessions(instance_id, 1, now, kv_tokens)
