"""The coupled draw of shared/protocol/sampling.py for all rows of a session: in numpy on the CPU, in torch elsewhere.

Invariant: a row's draw depends on its logits, sampling parameters, position and preceding text (for penalties) alone,
not on the other rows. In torch it equals `shared.protocol.sampling.draw` unless two scores differ by a few ulp of
float64. Reductions over the vocabulary are sequential (cumsum) or exact (max), so their bits do not depend on the
thread count or the batch shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.protocol import sampling as reference
from shared.protocol.messages import Sampling, TokenIds, TokenLogprobs
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import (
    GAMMA,
    MIX_1,
    MIX_2,
    NUCLEUS_SLACK,
    is_filtered,
    is_greedy,
    stream_key,
)

NO_DRAW = -1  # the draw from logits whose highest value is not finite


def draw(logits: Tensor, sampling: Sampling, position: int) -> Tensor:
    """Token ids [n] for positions position .. position + n - 1; NO_DRAW if a row's highest value is not finite.

    logits: [n, vocab] float32, or adjusted scores [n, vocab] float64.
    """
    if is_greedy(sampling) or logits.device.type != "cpu":
        return draw_on_device(logits, sampling, position)
    ids = [_draw_row(row, sampling, position + i) for i, row in enumerate(logits.numpy())]
    return torch.tensor(ids, dtype=torch.int64)


def draw_on_device(logits: Tensor, sampling: Sampling, position: int) -> Tensor:
    """The same in torch, all rows at once."""
    if not len(logits):  # a prefill chunk without draws
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    peak, best = greatest(logits)
    token_ids = best if is_greedy(sampling) else _sample(logits, peak, sampling, position)
    return token_ids.where(peak.isfinite(), NO_DRAW).squeeze(-1)


def _draw_row(scores: NDArray[np.floating], sampling: Sampling, position: int) -> int:
    return reference.draw(scores, sampling, position) if np.isfinite(scores.max()) else NO_DRAW


def adjust(logits: Tensor, running: RunningAdjustment | None, guesses: Sequence[int]) -> Tensor:
    """Scores [n, vocab] float64 if penalties, biases, min_tokens or a grammar apply, else the logits unchanged.

    Row i follows the text of `running` and the first i of `guesses`.
    """
    if running is None:
        return logits
    scores, length = logits.double(), running.length
    for i in range(len(scores)):
        running.extend(guesses[max(0, i - 1) : i])
        changes = running.current
        token_ids = torch.from_numpy(changes.token_ids).to(scores.device)
        changed = changes.scores(scores[i, token_ids].cpu().numpy())
        scores[i, token_ids] = torch.from_numpy(changed).to(scores.device)
        if (allowed := running.rule.allowed) is not None:
            scores[i].masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)
    running.roll_back(length)
    return scores


def logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Logprobs of each row's drawn token and num_top most likely tokens, from unadjusted logits [n, vocab]."""
    return [_logprobs(row, token_id, num_top) for row, token_id in zip(logits, token_ids, strict=True)]


def _logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    every = torch.log_softmax(logits.double(), dim=-1)
    if num_top == 0:
        return TokenLogprobs(float(every[token_id]), TokenIds(), [])
    least = every.topk(min(num_top, len(every))).values[-1]
    candidates = (every >= least).nonzero().squeeze(-1)  # ascending ids; more than num_top if values are equal
    ranked, order = every[candidates].sort(descending=True, stable=True)
    top_ids = candidates[order][:num_top].tolist()
    return TokenLogprobs(float(every[token_id]), TokenIds(top_ids), ranked[:num_top].tolist())


def uniform(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """u in (0, 1), float64 [n, ids], of token_ids [n or 1, ids] at positions position .. position + n - 1."""
    return _uniform(_keys(seed, position, token_ids.shape[0], token_ids.device), token_ids)


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and argmax (lowest id of equal values) of each row, each [n, 1]; NaN counts as the maximum."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1, keepdim=True)
    best = torch.from_numpy(logits.numpy().argmax(axis=-1, keepdims=True))  # ten times as fast as torch's
    return logits.gather(-1, best), best


def _sample(logits: Tensor, peak: Tensor, sampling: Sampling, position: int) -> Tensor:
    scores = (logits.double() - peak) / sampling.temperature  # [n, vocab]
    keys = _keys(sampling.seed, position, len(logits), logits.device)
    if not is_filtered(sampling):
        every_id = torch.arange(scores.shape[-1], device=scores.device)
        return scores.add_(_gumbel(keys, every_id[None])).argmax(dim=-1, keepdim=True)
    kept, token_ids = _filter(scores, sampling)
    kept = kept + _gumbel(keys, token_ids)
    # Columns are in score order, so argmax would not choose the lowest id of equal sums.
    is_best = kept == kept.amax(dim=-1, keepdim=True)
    return token_ids.where(is_best, scores.shape[-1]).amin(dim=-1, keepdim=True)


def _filter(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Scores and ids [n, candidates] by (score descending, id ascending); filtered scores are -inf."""
    weights = scores.exp() if sampling.top_p < 1 or sampling.min_p > 0 else None
    total = weights.cumsum(dim=-1)[:, -1:] if weights is not None and sampling.top_p < 1 else None
    token_ids, candidate_scores = _gather(scores, _candidates(scores, weights, total, sampling))
    ranked, order = candidate_scores.sort(dim=-1, descending=True, stable=True)
    token_ids = token_ids.gather(-1, order)
    keep = ranked > -torch.inf
    if sampling.top_k > 0:
        keep[:, sampling.top_k :] = False
    if weights is not None:
        ranked_weights = weights.gather(-1, token_ids) * keep
        keep &= ranked_weights >= sampling.min_p
        if total is not None:
            mass = ranked_weights.cumsum(dim=-1)
            keep &= mass - ranked_weights < sampling.top_p * (mass[:, -1:] if sampling.top_k > 0 else total)
    return ranked.where(keep, -torch.inf), token_ids


def _gather(scores: Tensor, is_candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and scores where the mask is set, each [n, max candidates per row]; padded with -inf."""
    rows, ids = is_candidate.nonzero(as_tuple=True)
    ends = is_candidate.sum(dim=-1).cumsum(dim=-1)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    columns = torch.arange(len(rows), device=rows.device) - starts[rows]
    shape = (len(scores), int((ends - starts).max().clamp_min(1)))  # a row of NaN has no candidates
    token_ids = ids.new_zeros(shape).index_put_((rows, columns), ids)
    return token_ids, scores.new_full(shape, -torch.inf).index_put_((rows, columns), scores[rows, ids])


def _candidates(scores: Tensor, weights: Tensor | None, total: Tensor | None, sampling: Sampling) -> Tensor:
    """Mask [n, vocab] of a superset of the unfiltered tokens, as in shared/protocol/sampling.py."""
    num = scores.shape[-1]
    if sampling.top_k > 0:
        kth = scores.topk(min(sampling.top_k, num), dim=-1).values[:, -1:]
        return scores >= kth
    assert weights is not None
    if total is None:
        return weights >= sampling.min_p
    lowest = (1 - sampling.top_p) / num * total * NUCLEUS_SLACK
    return weights >= lowest.clamp_min(sampling.min_p)


def _keys(seed: int, position: int, num: int, device: torch.device) -> Tensor:
    keys = [_signed(stream_key(seed, position + i)) for i in range(num)]
    return torch.tensor(keys, dtype=torch.int64, device=device)[:, None]


def _gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    return _uniform(keys, token_ids).log_().neg_().log_().neg_()


def _uniform(keys: Tensor, token_ids: Tensor) -> Tensor:
    """SplitMix64 in two's complement: int64 products wrap, and a mask makes shifts logical."""
    state = (token_ids + 1).mul(_signed(GAMMA)) + keys  # [n, ids]
    for shift, multiplier in ((30, MIX_1), (27, MIX_2)):
        state ^= _shift(state, shift)
        state *= _signed(multiplier)
    state ^= _shift(state, 31)
    return _shift(state, 12).double().add_(0.5).mul_(2.0**-52)


def _shift(state: Tensor, by: int) -> Tensor:
    return (state >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
