"""Whether an exported draft computes what its source computes, on texts that the source itself writes.

Invariant: a draft that passes gives the same logits after a rollback as without one, to the bit, and logits that follow
the source's own, as closely as its precision lets it, fed in chunks or token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from model_zoo.exporting.draft_step import cache_name
from services.edge_drafter.model import DraftModel

NUM_TEXTS, TEXT_LENGTH, TAIL_LENGTH = 4, 36, 7
LEAST_CORRELATION = {
    "fp32": 0.99999,
    "int8": 0.9,
    "int4": 0.3,
}  # of a random model, the worst to quantise, 0.99 and 0.5


class Disagreement(ValueError):
    """The exported graph computes something else than its source; the message says what."""


@dataclass(frozen=True)
class Agreement:
    """How the draft follows its source."""

    num_tokens: int
    num_equal: int  # where both find the same token most likely
    correlation: float  # of the logits, the mean of all positions

    @property
    def share(self) -> float:
        return self.num_equal / self.num_tokens


@dataclass(frozen=True)
class Reference:
    """Texts as the source writes them, and its logits after each of their tokens."""

    texts: list[list[int]]
    logits: list[np.ndarray]  # [tokens, vocab] of each text

    @property
    def vocab_size(self) -> int:
        return int(self.logits[0].shape[1])


@torch.no_grad()
def reference_of(source: PreTrainedModel, max_context: int) -> Reference:
    """What drafts of this model, in float32, are compared with."""
    texts = _sample_texts(source, NUM_TEXTS, min(TEXT_LENGTH, max_context - TAIL_LENGTH))
    logits = [source(input_ids=torch.tensor([text]), use_cache=False).logits[0].float().numpy() for text in texts]
    return Reference(texts, logits)


def check_agreement(draft: DraftModel, reference: Reference, precision: str) -> Agreement:
    """Raises Disagreement."""
    if draft.vocab_size != reference.vocab_size:
        raise Disagreement(f"the draft has {draft.vocab_size} tokens, its source {reference.vocab_size}")
    got = [_fed_in_parts(draft, text) for text in reference.texts]
    pairs = [(ours[i], theirs[i]) for ours, theirs in zip(got, reference.logits, strict=True) for i in ours]
    agreement = Agreement(
        num_tokens=len(pairs),
        num_equal=sum(int(ours.argmax() == theirs.argmax()) for ours, theirs in pairs),
        correlation=float(np.mean([_correlation(ours, theirs) for ours, theirs in pairs])),
    )
    if not agreement.correlation >= LEAST_CORRELATION[precision]:
        raise Disagreement(
            f"the exported graph does not compute what its source computes: their logits have a correlation of "
            f"{agreement.correlation:.5f}, at least {LEAST_CORRELATION[precision]} is expected of {precision}"
        )
    _check_rollback(draft, *reference.texts[:2])
    return agreement


def _sample_texts(source: PreTrainedModel, num_texts: int, length: int) -> list[list[int]]:
    """Texts as the model writes them: seeded first tokens, then draws from its own distribution. [num_texts][length]"""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(source.config.get_text_config().vocab_size, (num_texts, 1), generator=generator)
    name, cache = cache_name(source), None
    while ids.shape[1] < length:
        output = source(input_ids=ids[:, -1:], use_cache=True, **{name: cache})
        cache = output[name]
        probabilities = output.logits[:, -1].float().softmax(dim=-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    texts: list[list[int]] = ids.tolist()
    return texts


def _fed_in_parts(draft: DraftModel, text: Sequence[int]) -> dict[int, np.ndarray]:
    """Logits by the index of the last token fed: a chunk, then token by token, then a chunk again."""
    third = len(text) // 3
    ends = [third, *range(third + 1, 2 * third + 1), len(text)]
    cache = draft.new_cache(len(text))
    return {end - 1: draft.feed(cache, text[cache.length : end], cache.length) for end in ends}


def _check_rollback(draft: DraftModel, text: Sequence[int], other: Sequence[int]) -> None:
    """Feeding a wrong tail and rolling it back must leave no trace."""
    clean, rolled_back = draft.new_cache(len(text) + TAIL_LENGTH), draft.new_cache(len(text) + TAIL_LENGTH)
    for cache in (clean, rolled_back):
        draft.feed(cache, text, 0)
    draft.feed(rolled_back, other[:TAIL_LENGTH], len(text))
    start = len(text) // 2
    if not np.array_equal(draft.feed(clean, text[start:], start), draft.feed(rolled_back, text[start:], start)):
        raise Disagreement("the exported graph remembers tokens that were rolled back")


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.corrcoef(ours.astype(np.float64), theirs.astype(np.float64))[0, 1])
