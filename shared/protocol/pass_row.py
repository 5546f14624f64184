"""A session's share of one pass, and what its verdict tells of the pass."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.lookup import NOTHING, LookedUp
from shared.protocol.messages import NO_TOKENS, TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class PassRow:
    """A session's share of one pass, frozen when the pass begins.

    fed_ids: tokens to compute at the positions `start`, start + 1, ... num_draws: the last so many of them yield a draw
    each, for the positions `base`, base + 1, ...; 0 inside a prefill. guesses: the drafter's, compared with the draws;
    looked_up: the verifier's own behind them. The last of all need not be fed. scored_ids: text at the positions
    start + 1, ... whose logprobs the pass tells.
    """

    start: int
    fed_ids: TokenIds
    num_draws: int
    base: int
    guesses: TokenIds
    term: int
    epoch: int
    scored_ids: TokenIds = NO_TOKENS
    looked_up: LookedUp = NOTHING


@dataclass(frozen=True, slots=True)
class PassInfo:
    """The pass of a verdict, as the verdict describes it."""

    compute_ms: float = 0.0
    batch: int = 0
    queue: float = 0.0
    num_tokens: int = 0  # fed


NO_PASS = PassInfo()
