"""A drafter that sends random guesses as fast as verdicts arrive.

It computes no model and shares the benchmark's process, so it takes almost no processor time: it can slow others only
through the verifier.
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
WINDOW, CHUNK = 8, 2  # defaults of a drafter without a controller


@dataclass
class LyingSession:
    """State of one session."""

    verifier_id: str
    term: int
    epoch: int = 0
    committed: int = 0


class LyingDrafter:
    """One drafter instance on a bus."""

    def __init__(self, bus: Bus, seed: int) -> None:
        self.instance_id = subjects.new_instance_id("liar")
        self._bus = bus
        self._random = np.random.default_rng(seed)
        self._outbox = Outbox(bus)
        self._sessions: dict[str, LyingSession] = {}

    async def run(self) -> None:
        """Serves until cancelled."""
        await self._bus.subscribe(subjects.inbox("drafter", self.instance_id), self._receive)
        await self._outbox.run()

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Speculate():
                self._sessions[message.session_id] = LyingSession(message.verifier_id, message.term)
                self._send(message.session_id, len(message.prompt_ids), 0)
            case Verdict() if message.finish:
                self._sessions.pop(message.session_id, None)
            case Verdict():
                self._answer(message)

    def _answer(self, verdict: Verdict) -> None:
        """Sends a whole window of guesses after the committed tokens."""
        session = self._sessions.get(verdict.session_id)
        committed = verdict.base + len(verdict.token_ids)
        if session is None or committed <= session.committed:
            return
        session.epoch, session.committed = max(session.epoch + 1, verdict.epoch), committed
        for offset in range(0, WINDOW, CHUNK):
            self._send(verdict.session_id, committed + offset, CHUNK)

    def _send(self, session_id: str, base: int, num_guesses: int) -> None:
        session = self._sessions[session_id]
        ids = TokenIds(self._random.integers(VOCABULARY, size=num_guesses).tolist()) if num_guesses else NO_TOKENS
        draft = Draft(session_id, session.term, session.epoch, base, ids, True, time.monotonic() * 1e3)
        self._outbox.put(subjects.to("verifier", session.verifier_id, Draft, self.instance_id), draft)
