"""The coupled draw: the token that a row of logits yields, from (logits, sampling parameters, seed, position) alone.

Invariant: the noise of a token depends on (seed, position, token id) only, and `uniform` gives the same bits here as in
the verifier's torch sampler. So a guess equals the target's draw whenever both logits lead to the same choice
(drafter-invariant speculative decoding, arXiv 2408.07978). docs/sampling.md has the rules.

Order: penalties, biases, min_tokens, temperature, top-k, top-p, min-p, noise, argmax. Scores and noise are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.protocol.messages import Sampling

GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment; below, the multipliers of its finaliser
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
NUCLEUS_SLACK = 1 - 1e-9  # lowers the cut: rounding must not drop a token of the nucleus
RARE_U, RARE_NOISE = 0.98, 3.91  # noise above RARE_NOISE takes a u of RARE_U or more: -ln(-ln 0.98) = 3.902

_MASK = (1 << 64) - 1


def is_greedy(sampling: Sampling) -> bool:
    """Whether the draw is the argmax of the logits."""
    return sampling.temperature == 0 or sampling.top_k == 1


def is_filtered(sampling: Sampling) -> bool:
    """Whether top-k, top-p or min-p may drop tokens."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def stream_key(seed: int, position: int) -> int:
    """The 64-bit start of the noise stream of one position; `seed` is taken modulo 2**64."""
    return _mix((_mix(seed + GAMMA) + (position + 1) * GAMMA) & _MASK)


def uniform(seed: int, position: int, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """u in (0, 1) of each token id, [n]: (the upper 52 bits of SplitMix64's output number `token_id` + 0.5) / 2**52."""
    state = token_ids.astype(np.uint64)
    state += np.uint64(1)
    state *= np.uint64(GAMMA)
    state += np.uint64(stream_key(seed, position))
    for shift, multiplier in ((30, MIX_1), (27, MIX_2)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(multiplier)
    state ^= state >> np.uint64(31)
    state >>= np.uint64(12)
    u = state.astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    return u


def gumbel(seed: int, position: int, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise of each token id, [n]: -ln(-ln u)."""
    noise = uniform(seed, position, token_ids)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)


@dataclass(frozen=True, slots=True)
class History:
    """The text before a draw, as far as it changes scores. output_ids: the tokens generated so far."""

    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    stop_ids: Sequence[int] = ()
    min_tokens: int = 0


class Adjustment(NamedTuple):
    """How scores differ from logits at one position: arrays [n], one entry for each changed token."""

    token_ids: NDArray[np.int64]
    repetition: NDArray[np.float64]  # divides positive logits and multiplies negative ones
    penalty: NDArray[np.float64]  # presence and frequency penalty, subtracted
    bias: NDArray[np.float64]

    def scores(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores [n] of token_ids from their logits [n]."""
        scores = np.where(logits > 0, logits / self.repetition, logits * self.repetition)
        return scores - self.penalty + self.bias

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores [vocab] from the logits [vocab]."""
        scores = logits.astype(np.float64)
        scores[self.token_ids] = self.scores(scores[self.token_ids])
        return scores


def is_penalised(sampling: Sampling) -> bool:
    """Whether the score of a token may depend on its occurrences in the text."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1)


def is_adjusted(sampling: Sampling, min_tokens: int = 0) -> bool:
    """Whether a score may differ from its logit."""
    return bool(is_penalised(sampling) or sampling.logit_bias or min_tokens)


def adjustment(sampling: Sampling, history: History) -> Adjustment:
    """How the scores after `history` differ from the logits.

    Presence and frequency penalties count generated tokens; the repetition penalty counts the prompt's too, as in vLLM.
    A stop id can't be drawn before min_tokens tokens.
    """
    outputs, counts = np.unique(np.asarray(history.output_ids, dtype=np.int64), return_counts=True)
    repeated = outputs
    if sampling.repetition_penalty != 1:
        repeated = np.union1d(outputs, np.asarray(history.prompt_ids, dtype=np.int64))
    biases = {each.token_id: each.bias for each in sampling.logit_bias}
    if len(history.output_ids) < history.min_tokens:
        biases |= dict.fromkeys(history.stop_ids, -np.inf)
    biased = np.array(sorted(biases), dtype=np.int64)
    token_ids = np.union1d(repeated, biased)
    repetition, penalty, bias = np.ones(len(token_ids)), np.zeros(len(token_ids)), np.zeros(len(token_ids))
    repetition[np.searchsorted(token_ids, repeated)] = sampling.repetition_penalty
    penalty[np.searchsorted(token_ids, outputs)] = sampling.presence_penalty + sampling.frequency_penalty * counts
    bias[np.searchsorted(token_ids, biased)] = [biases[token_id] for token_id in biased.tolist()]
    return Adjustment(token_ids, repetition, penalty, bias)


def adjusted(logits: NDArray[np.floating], sampling: Sampling, history: History) -> NDArray[np.floating]:
    """Scores [vocab]: float64 if any differs from its logit, else the logits themselves."""
    return adjustment(sampling, history).apply(logits) if is_adjusted(sampling, history.min_tokens) else logits


def draw(logits: NDArray[np.floating], sampling: Sampling, position: int, history: History | None = None) -> int:
    """The token for `position`, from the logits or scores [vocab] after the token before it. Ties go to the lowest id.

    history: None adjusts nothing. Raises ValueError if the best score is not finite.
    """
    scores = logits if history is None else adjusted(logits, sampling, history)
    best = int(np.argmax(scores))  # a NaN is its own argmax
    peak = float(scores[best])
    if not np.isfinite(peak):
        raise ValueError(f"the best score for position {position} is {peak}")
    if is_greedy(sampling):
        return best
    with np.errstate(over="ignore"):  # a temperature near zero gives -inf, which is right
        scaled = (scores.astype(np.float64) - peak) / sampling.temperature
    if not is_filtered(sampling):
        return _noisiest(scaled, best, sampling.seed, position)
    token_ids = kept_ids(scaled, sampling)
    noisy = scaled[token_ids] + gumbel(sampling.seed, position, token_ids)
    return int(token_ids[np.argmax(noisy)])


def _noisiest(scores: NDArray[np.float64], best: int, seed: int, position: int) -> int:
    """argmax of scores [vocab] plus noise. Logarithms are taken only where the noisy score of `best` can be reached:
    with rare noise, or with a score close enough."""
    u = uniform(seed, position, np.arange(len(scores)))
    reached = scores[best] - np.log(-np.log(u[best]))
    token_ids = np.flatnonzero((u >= RARE_U) | (scores >= reached - RARE_NOISE))
    return int(token_ids[np.argmax(scores[token_ids] - np.log(-np.log(u[token_ids])))])


def confidence_of(token_id: int, scores: NDArray[np.floating]) -> float:
    """The softmax probability of a token under scores [vocab]; the greatest score must be finite."""
    weights = np.exp(scores - scores.max())
    return float(weights[token_id] / weights.sum(dtype=np.float64))


def kept_ids(scores: NDArray[np.float64], sampling: Sampling) -> NDArray[np.int64]:
    """The token ids, ascending, that top-k, top-p and min-p keep. scores: [vocab], the greatest must be 0."""
    weights = np.exp(scores) if sampling.top_p < 1 or sampling.min_p > 0 else None
    token_ids = _candidates(scores, weights, sampling)
    token_ids = token_ids[np.argsort(-scores[token_ids], kind="stable")]  # by (score descending, id ascending)
    if sampling.top_k > 0:
        token_ids = token_ids[: sampling.top_k]
    if weights is not None:
        ranked = weights[token_ids]
        keep = ranked >= sampling.min_p  # the greatest weight is 1
        if sampling.top_p < 1:
            mass = np.cumsum(ranked)
            total = mass[-1] if sampling.top_k > 0 else np.cumsum(weights)[-1]
            keep &= mass - ranked < sampling.top_p * total
        token_ids = token_ids[keep]
    return np.sort(token_ids)


def _candidates(
    scores: NDArray[np.float64], weights: NDArray[np.float64] | None, sampling: Sampling
) -> NDArray[np.int64]:
    """Ids, ascending, of a superset of the kept tokens: only these need sorting.

    top-k: all scores at or above the k-th. top-p: tokens lighter than (1 - top_p) x mass / vocab weigh less than
    1 - top_p together, so none of them is in the nucleus.
    """
    num = len(scores)
    if sampling.top_k > 0:
        rank = max(num - sampling.top_k, 0)
        return np.flatnonzero(scores >= np.partition(scores, rank)[rank])
    assert weights is not None
    lowest = (1 - sampling.top_p) / num * np.cumsum(weights)[-1] * NUCLEUS_SLACK
    return np.flatnonzero(weights >= max(lowest, sampling.min_p))


def _mix(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * MIX_2) & _MASK
    return state ^ (state >> 31)
