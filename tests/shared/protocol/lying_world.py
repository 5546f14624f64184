"""A world whose drafter lies. It sees the verifier's state and the whole text, and sends drafts for ever."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.guesses import MAX_EPOCH
from shared.protocol.messages import MAX_WINDOW, Draft, Open, TokenIds, Verdict
from shared.protocol.verifier_session import VerifierSession
from tests.shared.protocol.protocol_world import PROMPT, SESSION, VOCAB, World, target_text

LIES = ("polls", "polls of the whole text", "wrong guesses", "guesses taken back", "told tokens", "gaps", "far epochs")
TRUTHS = ("right guesses", "silence")


@dataclass
class LyingWorld(World):
    """tricks: what the drafter sends, one at random every `every_ms`."""

    tricks: tuple[str, ...] = LIES
    every_ms: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.truth = [*PROMPT, *target_text(self.seed, self.max_tokens)]
        self.is_bound = False
        self.answers: list[Verdict] = []  # to drafts
        self.heard: list[tuple[int, int]] = []  # epoch and position of each guess sent
        self.probabilities: list[float] = []  # survival after each draft

    def speculate(self, request: Open) -> None:
        if not self.is_bound:
            self.is_bound = True
            self.lie()

    def lie(self) -> None:
        session = self.verifier_sessions[self.verifier_id]
        for draft in self.drafts(session, self.rng.choice(self.tricks)):
            answer = session.on_draft(draft, self.now)
            self.answers += [answer] if answer else []
            self.heard += [(draft.epoch, draft.base + i) for i in range(len(draft.token_ids))]
            self.probabilities.append(session.guesses.survival.probability)
        self.compute(self.verifier_id)
        if not self.finish:
            self.at(self.every_ms, self.lie)

    def drafts(self, session: VerifierSession, trick: str) -> list[Draft]:
        """The drafts of a trick: each draft is an epoch, a base and guesses."""
        epoch, length = session.guesses.epoch, session.length
        wrong = [1 + token % (VOCAB - 1) for token in self.truth[length : length + MAX_WINDOW]]
        told = self.truth[max(len(PROMPT), length - MAX_WINDOW // 2) : length]
        made: dict[str, list[tuple[int, int, list[int]]]] = {
            "polls": [(epoch, length, [])],
            "polls of the whole text": [(epoch, 0, [])],
            "wrong guesses": [(epoch, length, wrong)],
            "guesses taken back": [(epoch, length, wrong), (epoch + 1, length, [])],
            "told tokens": [(epoch + 1, length - len(told), [*told, *wrong[:8]])],
            "gaps": [(epoch, length + 100, wrong)],
            "far epochs": [(epoch + self.rng.choice([1, 1000]), length, wrong)],
            "right guesses": [(epoch, length, self.truth[length : length + 2])],
            "silence": [],
        }
        return [self.draft_of(min(epoch, MAX_EPOCH), base, ids) for epoch, base, ids in made[trick]]

    def draft_of(self, epoch: int, base: int, ids: list[int]) -> Draft:
        sent_ms = self.rng.choice([0.0, self.now, 1e15])
        return Draft(SESSION, self.term, epoch, base, TokenIds(ids), False, sent_ms)
