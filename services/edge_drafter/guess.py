"""A guess: the token that the draft model draws for a position, and its confidence.

Invariant: a guess is drawn as the target draws, with the same penalties, biases, minimum length, filters and noise, so
it is wrong only where the two models differ. It depends on the text at the start of its step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Sampling
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import confidence_of, draw


@dataclass(frozen=True, slots=True)
class Guess:
    """A token, its probability under the draft's scores at temperature 1 (1 if not computed), and the only tokens that
    the request's grammar allows after it."""

    token_id: int
    confidence: float = 1.0
    forced: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class GuessInputs:
    """All that a guess depends on besides its logits. They hold until the session's next step."""

    sampling: Sampling
    position: int
    running: RunningAdjustment | None  # of the text before the guess; None: the scores are the logits
    wants_confidence: bool

    @classmethod
    def of(cls, state: DrafterSession, running: RunningAdjustment | None) -> GuessInputs:
        """The inputs at the position after a session's current tokens, which `running` follows."""
        return cls(state.request.sampling, len(state.tokens), running, state.min_confidence > 0)

    def draw(self, logits: NDArray[np.float32]) -> Guess:
        """The guess from the logits [vocab] after the token before it. Raises ValueError if they allow none.

        A draft may not know any token that a grammar allows: then the first of those is the guess.
        """
        scores = logits if self.running is None else self.running.scores(logits)
        if self.running is not None and not np.isfinite(scores.max()):
            allowed = self.running.rule.allowed
            if allowed is not None:
                return Guess(int(allowed.argmax()), 0.0)
        token_id = draw(scores, self.sampling, self.position)
        confidence = confidence_of(token_id, scores) if self.wants_confidence else 1.0
        forced = () if self.running is None else self.running.forced_after([token_id])
        return Guess(token_id, confidence, tuple(forced))
