"""What the target model asks of a network, and any Hugging Face causal language model as one.

Invariant: the logits of a token depend on what its session fed alone, to the last bit on the CPU, for every number of
tokens that `row_rule` allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from services.cloud_verifier.torch_engine.attention import Attention
from services.cloud_verifier.torch_engine.head import Float32Head
from services.cloud_verifier.torch_engine.packed import RowRule, limit_rows, most_rows, replace_layers, strictest
from services.cloud_verifier.torch_engine.sampler import NO_DRAW, greatest

# Elementwise code of a model may treat the last elements of a vector apart: they are dead tokens' then.
WHOLE_VECTORS = RowRule(4, 4)


class Outputs(Protocol):
    """What a pass found for the tokens that draw, one row for each."""

    def logits(self, rows: Tensor) -> Tensor:
        """float32 [len(rows), vocab]"""

    def best(self, rows: Tensor) -> Tensor:
        """Ids [len(rows)] of the greatest logits, the lowest of equals; NO_DRAW where the greatest is not finite."""


class Network(Protocol):
    """The layers of a model, from token ids to logits."""

    row_rule: RowRule

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        """Outputs with a row for each of the tokens `drawing` (indices) of a flat sequence.

        token_ids, positions: [tokens] int64, as many as `row_rule` allows.
        """


class ComputedLogits:
    """Outputs of a network that computes all logits."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def logits(self, rows: Tensor) -> Tensor:
        return self._logits[rows]

    def best(self, rows: Tensor) -> Tensor:
        peaks, token_ids = greatest(self._logits[rows])
        return token_ids.where(peaks.isfinite(), NO_DRAW).squeeze(-1)


class TransformersNetwork:
    """The model's own code from transformers, with its layers, activations and attention replaced."""

    def __init__(self, model: PreTrainedModel, *, packed: bool) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        new_head = Float32Head(head.weight, head.bias, packed=packed)
        rule = strictest((WHOLE_VECTORS, replace_layers(model, new_head, packed=packed)))
        limits = most_rows(head.weight, packed=packed), new_head.row_rule.most
        self.row_rule = replace(rule, most=min(rule.most, *limits))
        limit_rows((model,), self.row_rule.most)
        self._model = model

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        return computed(self._model, token_ids, positions, drawing, attention)


def computed(
    model: PreTrainedModel, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention
) -> Outputs:
    """What the model's own code says of the tokens `drawing`, as Network has it."""
    logits: Tensor = model(
        input_ids=token_ids[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=drawing,
        dsd_attention=attention,
    ).logits
    return ComputedLogits(logits[0].float())
