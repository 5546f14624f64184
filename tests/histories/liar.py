"""A drafter of a history that lies: it knows the whole text, and sends what it likes to every verifier it heard of."""

from __future__ import annotations

from shared.bus.bus import Absent
from shared.protocol import subjects
from shared.protocol.messages import (
    Draft,
    Failure,
    Heartbeat,
    Load,
    Message,
    Speculate,
    TokenIds,
    Verdict,
)
from tests.histories import schedule
from tests.histories.process import Process
from tests.histories.schedule import CALM_MS
from tests.histories.target import VOCABULARY, follow, token_after

EVERY_MS = 15.0
FORESIGHT = 6  # tokens
MANY = 6  # requests that it remembers


class LiarProcess(Process):
    """One liar. It falls silent when the faults are over."""

    service = "drafter"
    plan: schedule.Drafter

    def start(self) -> None:
        self.requests: list[tuple[Speculate, str]] = []  # and the gateway of each
        self.epochs: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        self.every(1000.0, self._claim)
        self.every(EVERY_MS, self._lie)

    def receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Speculate):
            self.requests = [*self.requests[1 - MANY :], (message, subjects.sender(subject))]
        elif isinstance(message, Verdict):
            self.epochs[message.session_id] = message.epoch
            self.lengths[message.session_id] = message.base + len(message.token_ids)

    def suffer(self, fault: schedule.Fault) -> None:
        """Nothing makes it honest."""

    def _claim(self) -> None:
        load = Load(self.rng.choice((0, 100)), 8, step_ms=0.0)
        heartbeat = Heartbeat("drafter", self.instance_id, 1.0, ["m"], 10_000, VOCABULARY, "liar", load, False)
        self.put(subjects.broadcast(Heartbeat, "drafter", self.instance_id), heartbeat)

    def _lie(self) -> None:
        if not self.requests or self.now_ms > CALM_MS:
            return
        request, gateway_id = self.rng.choice(self.requests)
        if self.rng.random() < 0.002:
            failure = Failure(request.session_id, request.term, "internal", "so it says", self.rng.random() < 0.5)
            self.put(subjects.to("gateway", gateway_id, Failure, self.instance_id), failure)
            return
        self.put(subjects.to("verifier", request.verifier_id, Draft, self.instance_id), self._draft(request))

    def _draft(self, request: Speculate) -> Draft:
        rng, session_id = self.rng, request.session_id
        text = self._text(session_id)
        length = self.lengths.get(session_id, len(request.prompt_ids))
        epoch = max(0, self.epochs.get(session_id, 0) + rng.choice((-1, 0, 0, 0, 1, 1000)))
        base = max(0, length + rng.choice((-length, -3, 0, 0, 0, 2, 100)))
        num = rng.choice((0, 1, 4, 20))
        right, wrong = text[base : base + num], [rng.randrange(VOCABULARY + 1) for _ in range(num)]
        ids = rng.choice((right, wrong, [*right[:2], *wrong[2:]]))
        term = request.term + rng.choice((0, 0, 0, 0, 1, -1))
        sent_ms = rng.choice((0.0, self.world.clock.monotonic() * 1e3, 1e15))
        return Draft(session_id, max(0, term), epoch, base, TokenIds(ids), rng.random() < 0.3, sent_ms)

    def _text(self, session_id: str) -> list[int]:
        """The text so far, and what a verifier will add to it."""
        text = self.world.texts[session_id]
        tokens, code = list(text.tokens), text.codes[-1]
        for _ in range(FORESIGHT):
            tokens.append(token_after(code))
            code = follow(code, tokens[-1])
        return tokens

    def hand_over(self) -> None:
        """It tells nobody that it ends."""

    def left_over(self) -> list[str]:
        return []

    def check_end(self) -> None:
        """It keeps nothing."""
