"""A drafter that guesses random ids as fast as verdicts come.

It computes no model and has no process of its own, so that it takes next to no processor time from others: what it
costs them, it costs through the verifier.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from shared.bus.bus import Absent, Bus
from shared.bus.outbox import Outbox
from shared.protocol import subjects
from shared.protocol.messages import NO_TOKENS, Draft, Message, Speculate, TokenIds, Verdict

VOCABULARY = 49152
WINDOW, CHUNK = 8, 2  # as an honest drafter has them without a controller


@dataclass
class Place:
    """Where one session stands, as far as a liar cares."""

    verifier_id: str
    term: int
    epoch: int = 0
    committed: int = 0


class Liar:
    """One instance on a bus; `run` publishes what it has to say."""

    def __init__(self, bus: Bus, seed: int) -> None:
        self.instance_id = subjects.new_instance_id("liar")
        self._bus = bus
        self._random = np.random.default_rng(seed)
        self._outbox = Outbox(bus)
        self._places: dict[str, Place] = {}

    async def run(self) -> None:
        """Lies until cancelled."""
        await self._bus.subscribe(subjects.inbox("drafter", self.instance_id), self._receive)
        await self._outbox.run()

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Speculate():
                self._places[message.session_id] = Place(message.verifier_id, message.term)
                self._send(message.session_id, len(message.prompt_ids), 0)
            case Verdict() if message.finish:
                self._places.pop(message.session_id, None)
            case Verdict():
                self._lie(message)

    def _lie(self, verdict: Verdict) -> None:
        """A whole window of guesses behind what the verifier has fixed."""
        place = self._places.get(verdict.session_id)
        committed = verdict.base + len(verdict.token_ids)
        if place is None or committed <= place.committed:
            return
        place.epoch, place.committed = max(place.epoch + 1, verdict.epoch), committed
        for offset in range(0, WINDOW, CHUNK):
            self._send(verdict.session_id, committed + offset, CHUNK)

    def _send(self, session_id: str, base: int, num_guesses: int) -> None:
        place = self._places[session_id]
        ids = TokenIds(self._random.integers(VOCABULARY, size=num_guesses).tolist()) if num_guesses else NO_TOKENS
        draft = Draft(session_id, place.term, place.epoch, base, ids, True, time.monotonic() * 1e3)
        self._outbox.put(subjects.to("verifier", place.verifier_id, Draft, self.instance_id), draft)
