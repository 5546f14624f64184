"""card.json of a distilled draft: what it was made of, what each half hour brought, and how well it guesses."""

from __future__ import annotations

from pathlib import Path

import msgspec

CARD = "card.json"


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One look. acceptance: on held-out answers, at temperature 0."""

    seconds: float  # of the whole distillation, without the time that a killed run lost
    step: int
    tokens: int  # of answers, trained on so far
    loss: float
    acceptance: float


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of the tokens of held-out answers that the draft guesses, each after the target's text before it."""

    greedy: float  # temperature 0
    sampled: float  # temperature 0.8
    num_tokens: int
    num_answers: int


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a user must know before deploying the draft."""

    target: str
    target_sha256: str  # of its weights, all files in the order of their names
    layers: list[int]  # of the target, that the training began with
    choice: str  # the rule that named them
    trials: dict[str, float]  # acceptance after a short training, by rule
    vocab_size: int  # tokens that the draft can guess
    coverage: float  # share of the target's probability that lies on them
    prompts: dict[str, int]  # by source
    answer_tokens: int  # of the training
    epochs: float
    answers_s: float  # time for prompts and answers
    training_s: float
    half_hours: list[Progress]
    acceptance: Acceptance
    precision: str
    step_ms: float  # median of a drafter's step for one session
    machine: str
    command: str
    date: str
    versions: dict[str, str]


def read_card(path: Path) -> Card:
    """Raises ValueError naming the file, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the card of a draft: {error}") from error
