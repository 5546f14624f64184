"""The network interface of the target model, and its implementation by transformers.

Invariant: the logits of a token depend on its session alone, bit for bit on the CPU, for every number of tokens that
`row_rule` allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from services.cloud_verifier.sampler import NO_DRAW, greatest
from services.cloud_verifier.torch_engine.attention import Attention
from services.cloud_verifier.torch_engine.head import Float32Head
from services.cloud_verifier.torch_engine.packed import RowRule, limit_rows, probe_max_rows, replace_layers, strictest

# A model's elementwise code may compute the last, partial vector differently. Padding keeps real tokens out of it.
WHOLE_VECTORS = RowRule(4, 4)


class Outputs(Protocol):
    """The results of a pass: one row for each token that yields a draw."""

    def logits(self, rows: Tensor) -> Tensor:
        """float32 [len(rows), vocab]"""

    def best(self, rows: Tensor) -> Tensor:
        """Ids [len(rows)] of the highest logits, the lowest id of equal ones; NO_DRAW if not finite."""


class Network(Protocol):
    """The layers of a model, from token ids to logits."""

    row_rule: RowRule

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        """token_ids, positions: [tokens] int64, a number that `row_rule` allows; drawing: [rows] indices into them."""


class ComputedLogits:
    """Outputs whose logits [rows, vocab] are all computed."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def logits(self, rows: Tensor) -> Tensor:
        return self._logits[rows]

    def best(self, rows: Tensor) -> Tensor:
        peaks, token_ids = greatest(self._logits[rows])
        return token_ids.where(peaks.isfinite(), NO_DRAW).squeeze(-1)


class TransformersNetwork:
    """The model's transformers code with replaced layers, activations and attention."""

    def __init__(self, model: PreTrainedModel, *, packed: bool) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        new_head = Float32Head(head.weight, head.bias, packed=packed)
        rule = strictest((WHOLE_VECTORS, replace_layers(model, new_head, packed=packed)))
        limits = probe_max_rows(head.weight, packed=packed), new_head.row_rule.max_rows
        self.row_rule = replace(rule, max_rows=min(rule.max_rows, *limits))
        limit_rows((model,), self.row_rule.max_rows)
        self._model = model

    def __call__(self, token_ids: Tensor, positions: Tensor, drawing: Tensor, attention: Attention) -> Outputs:
        logits: Tensor = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=drawing,
            dsd_attention=attention,
        ).logits
        return ComputedLogits(logits[0].float())
