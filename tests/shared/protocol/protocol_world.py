"""A world in virtual time that drives the protocol's two state machines against each other over a faulty bus.

Nothing here knows the rules of the protocol: it delivers messages late, twice, out of order or never, runs passes and
draft steps that take time, and replaces drafters and verifiers, as a gateway would, by terms.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.protocol.drafter_session import DrafterSession, DraftStep
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import Draft, Open, Poll, Sampling, Speculate, Speculation, TokenIds, Verdict
from shared.protocol.pass_row import PassInfo, PassRow
from shared.protocol.verifier_session import VerifierSession

VOCAB = 6
STOP = 0
PROMPT = TokenIds((1, 2, 3, 4, 5))
SESSION = "ab" * 16


def target_token(tokens: list[int], salt: int) -> int:
    """The target's draw after `tokens`, a function of the text only. One draw in 60 is the stop id, about."""
    code = zlib.crc32(bytes(tokens) + salt.to_bytes(4, "little"))
    return STOP if code % 60 == 0 else 1 + code % (VOCAB - 1)


def target_text(salt: int, max_tokens: int) -> list[int]:
    """The target's answer to PROMPT without a drafter."""
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + max_tokens:
        tokens.append(target_token(tokens, salt))
        if tokens[-1] == STOP:
            break
    return tokens[len(PROMPT) :]


@dataclass
class Faults:
    loss: float = 0.0
    duplicate: float = 0.0
    delay_ms: float = 5.0
    jitter_ms: float = 0.0  # longer than the gap between messages, so that they overtake each other


@dataclass
class World:
    """One session, its gateway, the drafters and verifiers it has had, and the bus between them."""

    seed: int
    max_tokens: int = 40
    window: int = 8
    chunk: int = 2
    free_run: bool = True
    accuracy: float = 0.7
    min_confidence: float = 0.0  # confidences of guesses are random numbers from 0 to 1
    faults: Faults = field(default_factory=Faults)
    pass_ms: float = 20.0
    step_ms: float = 5.0
    prefill_chunk: int = 3
    drafter_lease_ms: float = 2000.0
    forcing: float = 0.0  # chance that a grammar allows one token only
    max_looked_up: int = 0  # guesses of the verifier's own in a pass

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.term = 0
        self.verifier_sessions: dict[str, VerifierSession] = {}
        self.drafter_sessions: dict[str, DrafterSession] = {}
        self.retired: list[DrafterSession] = []
        self.verifier_id, self.drafter_id = "v.0", "d.0"
        self.received: list[int] = []  # tokens at the gateway, in order
        self.caches: dict[int, list[int]] = {}  # tokens in the KV cache of each state machine, by its id
        self.finish: str | None = None
        self.cut = False  # an outage: all messages are lost
        self.drops = 0
        self.num_unsure = 0

    # --- time and bus ----------------------------------------------------------------------------------------------

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.order), action))

    def send(self, action: Callable[[], None]) -> None:
        if self.cut or self.rng.random() < self.faults.loss:
            self.drops += 1
            return
        copies = 2 if self.rng.random() < self.faults.duplicate else 1
        for _ in range(copies):
            self.at(self.faults.delay_ms + self.rng.random() * self.faults.jitter_ms, action)

    def run(self, until: float = 600_000.0, stop: Callable[[], bool] | None = None) -> None:
        while self.events and not (stop and stop()):
            time, _, action = heapq.heappop(self.events)
            if time > until:
                heapq.heappush(self.events, (time, -1, action))
                return
            self.now = time
            action()

    # --- gateway ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.bind()
        self.at(300.0, self.poll)

    def bind(self, verifier_id: str | None = None, drafter_id: str | None = "") -> None:
        """Opens the session at a verifier and asks a drafter, under a new term (None: no drafter)."""
        self.term += 1
        self.verifier_id = verifier_id or self.verifier_id
        self.drafter_id = self.drafter_id if drafter_id == "" else drafter_id
        request = Open(
            SESSION, self.term, self.drafter_id, PROMPT, TokenIds(self.received), Sampling(), TokenIds((STOP,)),
            self.max_tokens, self.free_run, lookup=self.max_looked_up > 0,
        )  # fmt: skip
        self.open_reliably(request)

    def open_reliably(self, request: Open) -> None:
        """Repeats Open until it is answered; here the session's existence is the answer."""
        if request.term != self.term or self.finish:
            return
        known = self.verifier_sessions.get(self.verifier_id)
        if known and known.term == request.term:
            self.send(lambda: self.speculate(request))
            return
        verifier_id = self.verifier_id
        self.send(lambda: self.on_open(verifier_id, request))
        self.at(100.0, lambda: self.open_reliably(request))

    def poll(self) -> None:
        if self.finish:
            return
        poll = Poll(SESSION, self.term, len(PROMPT) + len(self.received))
        verifier_id = self.verifier_id
        self.send(lambda: self.on_poll(verifier_id, poll))
        self.at(300.0, self.poll)

    def on_verdict_at_gateway(self, verdict: Verdict) -> None:
        if verdict.term != self.term or self.finish:
            return
        have = len(PROMPT) + len(self.received)
        if verdict.base > have:
            return
        fresh = verdict.token_ids[have - verdict.base :]
        overlap = verdict.token_ids[: have - verdict.base]
        assert list(overlap) == self.received[verdict.base - len(PROMPT) :][: len(overlap)], "a token changed"
        self.received.extend(fresh)
        if verdict.finish and verdict.base + len(verdict.token_ids) == len(PROMPT) + len(self.received):
            self.finish = verdict.finish

    # --- verifier --------------------------------------------------------------------------------------------------

    def on_open(self, verifier_id: str, request: Open) -> None:
        session = self.verifier_sessions.get(verifier_id)
        if session is None:
            session = self.verifier_sessions[verifier_id] = VerifierSession.opened(request, "g.0", self.now)
            self.expire(verifier_id, session)
        elif session.term < request.term:
            session.rebind(request, self.now)
        self.compute(verifier_id)

    def on_poll(self, verifier_id: str, poll: Poll) -> None:
        session = self.verifier_sessions.get(verifier_id)
        answer = session.on_poll(poll, self.now) if session else None
        if answer:
            self.send(lambda: self.on_verdict_at_gateway(answer))

    def on_draft(self, verifier_id: str, sender: str, draft: Draft) -> None:
        session = self.verifier_sessions.get(verifier_id)
        if session is None or session.drafter_id != sender:
            return
        answer = session.on_draft(draft, self.now)
        if answer:
            self.send(lambda: self.on_verdict_at_drafter(sender, answer))
        self.compute(verifier_id)

    def compute(self, verifier_id: str) -> None:
        session = self.verifier_sessions.get(verifier_id)
        if session is None or not session.ready:
            return
        session.look_up(self.max_looked_up)
        row = session.begin_pass(self.prefill_chunk + self.rng.randrange(6), self.rng.randrange(9))
        self.feed(session, session.tokens, row.start, row.fed_ids)
        draws, text = [], list(session.tokens)
        assert list(row.fed_ids[: session.length - row.start]) == session.tokens[row.start :][: len(row.fed_ids)]
        guesses = [*row.guesses, *row.looked_up.token_ids]
        for i in range(row.num_draws):
            draws.append(target_token(text, self.seed))
            text.append(guesses[i] if i < len(guesses) else 0)
        self.at(self.pass_ms, lambda: self.answer(verifier_id, session, row, draws))

    def forced(self, text: list[int]) -> list[int]:
        """Sometimes the next tokens of the text are the only ones that a grammar allows."""
        found: list[int] = []
        while text and self.forcing and len(found) < 4 and self.rng.random() < self.forcing:
            found.append(target_token([*text, *found], self.seed))
        return found

    def answer(self, verifier_id: str, session: VerifierSession, row: PassRow, draws: list[int]) -> None:
        if self.verifier_sessions.get(verifier_id) is not session:
            return  # the verifier died meanwhile
        guesses = [*row.guesses, *row.looked_up.token_ids]
        forced = self.forced([*session.tokens, *draws[: common_prefix(guesses, draws) + 1]] if draws else [])
        info = PassInfo(self.pass_ms, 1, 0.5)
        verdict = session.end_pass(row, draws, info, self.now, forced=forced)
        drafter_id = session.drafter_id
        if verdict:
            self.send(lambda: self.on_verdict_at_gateway(verdict))
            if drafter_id:
                self.send(lambda: self.on_verdict_at_drafter(drafter_id, verdict))
        self.compute(verifier_id)

    def expire(self, verifier_id: str, session: VerifierSession) -> None:
        """Checks periodically whether the drafter's lease is over."""
        if self.verifier_sessions.get(verifier_id) is not session or session.finish:
            return
        if session.expire_drafter(self.now, self.drafter_lease_ms):
            self.compute(verifier_id)
        self.at(self.drafter_lease_ms / 4, lambda: self.expire(verifier_id, session))

    # --- drafter ---------------------------------------------------------------------------------------------------

    def speculate(self, request: Open) -> None:
        drafter_id = request.drafter_id
        if drafter_id is None or request.term != self.term:
            return
        said = Speculate(
            SESSION, request.term, "v.000000000000", PROMPT, request.committed_ids, request.sampling, request.stop_ids,
            request.max_tokens, Speculation(),
        )  # fmt: skip
        session = self.drafter_sessions.get(drafter_id)
        if session is None:
            session = DrafterSession.started(said, self.window, self.chunk, self.free_run, self.now)
            session.steer(self.window, self.chunk, self.free_run, self.min_confidence)
            self.drafter_sessions[drafter_id] = session
        elif session.term < said.term:
            session.rebind(said, self.now)
        self.draft(drafter_id)
        self.watch(drafter_id, session)

    def draft(self, drafter_id: str) -> None:
        session = self.drafter_sessions.get(drafter_id)
        if session is None:
            return
        while (message := session.take_draft(self.now)) is not None:
            self.deliver(drafter_id, message)
        if session.wants_step:
            step = session.begin_step(4)
            self.feed(session, session.tokens, step.start, step.fed_ids)
            text = session.tokens[: step.start + len(step.fed_ids)]
            right = target_token(text, self.seed)
            guess = right if self.rng.random() < self.accuracy else self.rng.randrange(VOCAB)
            forced = self.forced([*text, guess])
            self.at(self.step_ms, lambda: self.step_done(drafter_id, session, step, guess, forced))

    def step_done(
        self, drafter_id: str, session: DrafterSession, step: DraftStep, guess: int, forced: list[int]
    ) -> None:
        if self.drafter_sessions.get(drafter_id) is session:
            if session.end_step(step, guess, self.rng.random(), forced) and session.is_unsure:
                self.num_unsure += 1
            self.draft(drafter_id)

    def deliver(self, drafter_id: str, message: Draft) -> None:
        verifier_id = self.verifier_id
        self.send(lambda: self.on_draft(verifier_id, drafter_id, message))

    def watch(self, drafter_id: str, session: DrafterSession) -> None:
        if self.drafter_sessions.get(drafter_id) is not session or session.closed:
            return
        message = session.on_timer(self.now)
        if message:
            self.deliver(drafter_id, message)
        self.at(20.0, lambda: self.watch(drafter_id, session))

    def on_verdict_at_drafter(self, drafter_id: str, verdict: Verdict) -> None:
        session = self.drafter_sessions.get(drafter_id)
        if session is not None:
            session.on_verdict(verdict, self.now)
            self.draft(drafter_id)

    def feed(self, owner: object, tokens: list[int], start: int, fed_ids: TokenIds) -> None:
        """Appends tokens to a KV cache, which must hold exactly the text before them."""
        cache = self.caches.setdefault(id(owner), [])
        assert cache[:start] == tokens[:start], "the cache holds another text"
        cache[start:] = fed_ids

    # --- changes ---------------------------------------------------------------------------------------------------

    def kill_drafter(self, replacement: str | None) -> None:
        gone = self.drafter_sessions.pop(self.drafter_id, None) if self.drafter_id else None
        if gone is not None:
            self.retired.append(gone)
        if not self.finish:
            self.bind(drafter_id=replacement)

    def kill_verifier(self, replacement: str) -> None:
        self.verifier_sessions.pop(self.verifier_id, None)
        if not self.finish:
            self.bind(verifier_id=replacement)


def quiet(faults: Faults) -> Faults:
    """The same delays without loss or duplication."""
    return replace(faults, loss=0.0, duplicate=0.0)
