"""Which verifier and which drafter get a session.

Pure: the routing policies of shared/policies/routing.py choose among the candidates, with the caller's random
generator. Every call gets `now` in seconds of the fleet's clock.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from services.gateway.fleet.guesses import DrafterGuesses
from services.gateway.fleet.peers import PeerFleet
from services.gateway.session.generation import Generation
from shared.policies.reading import reading_ms
from shared.policies.routing import Router, RoutingCandidate, with_room, within_share
from shared.protocol.messages import Heartbeat


@dataclass(slots=True)
class Placement:
    """Routing policies over the fleet. guesses: what became of those of its drafters, which no policy reads."""

    fleet: PeerFleet
    verifier_router: Router
    drafter_router: Router
    rng: random.Random
    guesses: DrafterGuesses = field(default_factory=DrafterGuesses)

    def verifier(
        self,
        generation: Generation,
        now: float,
        avoid: Collection[str] = (),
        fingerprints: Sequence[str] = (),
        holder: str | None = None,
        num_committed: int = 0,
    ) -> str | None:
        """A verifier that is not in `avoid`: the `holder`, which has the session, if possible; else one that has room
        for it; else any. Of several, one with the first of these fingerprints that any of them has. None if there is
        no verifier. num_committed: tokens of the answer."""
        choices = self._verifiers(generation, now, avoid)
        if any(choice.instance_id == holder for choice in choices):
            return holder
        return self._preferred(with_room(choices, generation.kv_tokens(num_committed)) or choices, now, fingerprints)

    def verifier_with_room(
        self,
        generation: Generation,
        now: float,
        avoid: Collection[str],
        fingerprints: Sequence[str],
        num_committed: int,
    ) -> str | None:
        """As `verifier`, but None if all have too little KV cache free."""
        choices = with_room(self._verifiers(generation, now, avoid), generation.kv_tokens(num_committed))
        return self._preferred(choices, now, fingerprints)

    def _verifiers(self, generation: Generation, now: float, avoid: Collection[str]) -> list[RoutingCandidate]:
        choices = self.fleet.choices("verifier", generation.model, now, generation.context, generation.vocab_size)
        return [choice for choice in choices if choice.instance_id not in avoid]

    def _preferred(self, choices: Sequence[RoutingCandidate], now: float, fingerprints: Sequence[str]) -> str | None:
        for fingerprint in fingerprints:
            if alike := [choice for choice in choices if self.fingerprint(choice.instance_id, now) == fingerprint]:
                return self._choose(self.verifier_router, alike)
        return self._choose(self.verifier_router, choices)

    def fingerprint(self, instance_id: str, now: float) -> str:
        """Numerics of an instance by its newest heartbeat; empty if it is not alive."""
        heartbeat = self.fleet.find(instance_id, now)
        return heartbeat.fingerprint if heartbeat else ""

    def drafter(
        self, generation: Generation, verifier_id: str, num_left: int, now: float, avoid: Collection[str] = ()
    ) -> str | None:
        """A drafter for the session that is not in `avoid`, one of the API key's own if possible. None: speculation is
        off, no drafter has room for one more token of the text, or every prefill would outlast the `num_left` tokens
        still to be generated."""
        if generation.speculation is None:
            return None
        length = generation.context - num_left
        verifier = self.fleet.find(verifier_id, now)
        left_ms = verifier.load.step_ms * num_left if verifier else 0.0  # until the verifier alone is done; 0: unknown

        def suits(drafter: Heartbeat) -> bool:
            return (
                drafter.max_context > length
                and drafter.instance_id not in avoid
                and (not left_ms or reading_ms(length, drafter.load.prefill_ms) < left_ms)
            )

        for names in generation.drafter_lists:
            choices = self.fleet.some_choices("drafter", generation.model, now, self.rng, suits, names)
            if choices:
                return self._choose(self.drafter_router, within_share(choices))
        return None

    def _choose(self, router: Router, choices: Sequence[RoutingCandidate]) -> str | None:
        chosen = router.choose(choices, self.rng)
        return chosen.instance_id if chosen else None
