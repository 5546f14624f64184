"""A reference implementation of a draw's scores in plain Python, independent of the services' code."""

from __future__ import annotations

import numpy as np

from shared.protocol.messages import Sampling
from shared.protocol.sampling import History


def long_way(logits: np.ndarray, sampling: Sampling, history: History) -> list[float]:
    """The scores, token by token, by the rules of docs/sampling.md."""
    scores = []
    for token_id, logit in enumerate(logits.tolist()):
        score = float(logit)
        if sampling.repetition_penalty != 1 and token_id in [*history.prompt_ids, *history.output_ids]:
            score = score / sampling.repetition_penalty if score > 0 else score * sampling.repetition_penalty
        count = list(history.output_ids).count(token_id)
        if count:
            score -= sampling.presence_penalty + sampling.frequency_penalty * count
        score += sum(each.bias for each in sampling.logit_bias if each.token_id == token_id)
        if len(history.output_ids) < history.min_tokens and token_id in history.stop_ids:
            score = -np.inf
        scores.append(score)
    return scores
