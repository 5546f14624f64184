"""A guess: the token that the draft model draws for a position, and its confidence.

Invariant: a guess is drawn as the target draws, with the same penalties, biases, minimum length, filters and noise, so
it is wrong only where the two models differ. It depends on the text at the start of its step only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Sampling
from shared.protocol.sampling import History, adjusted, confidence_of, draw, is_adjusted


@dataclass(frozen=True, slots=True)
class Guess:
    """A token, and its probability under the draft's scores at temperature 1 (1 if not computed)."""

    token_id: int
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class GuessInputs:
    """All that a guess depends on besides its logits."""

    sampling: Sampling
    position: int
    history: History | None  # None: the scores are the logits
    wants_confidence: bool

    @classmethod
    def of(cls, state: DrafterSession) -> GuessInputs:
        """The inputs at the position after a session's current tokens."""
        request = state.request
        history = None
        if is_adjusted(request.sampling, request.min_tokens):
            output_ids = tuple(state.tokens[len(request.prompt_ids) :])
            history = History(request.prompt_ids, output_ids, request.stop_ids, request.min_tokens)
        return cls(request.sampling, len(state.tokens), history, state.min_confidence > 0)

    def draw(self, logits: NDArray[np.float32]) -> Guess:
        """The guess from the logits [vocab] after the token before it. Raises ValueError if they allow none."""
        token_id = draw(logits, self.sampling, self.position, self.history)
        if not self.wants_confidence:
            return Guess(token_id)
        scores = logits if self.history is None else adjusted(logits, self.sampling, self.history)
        return Guess(token_id, confidence_of(token_id, scores))
