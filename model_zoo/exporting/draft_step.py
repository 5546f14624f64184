"""One step of a Hugging Face causal language model in a form that torch's exporter accepts.

Invariant: the step computes what the model computes for new tokens after past ones, for any number of both. It makes
positions and mask from the tensors' sizes, so the exported graph does not depend on values. Keys and values enter and
leave tokens first, [tokens, kv_heads, head_dim].
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.pytorch_utils import Conv1D


class UnsupportedDraft(ValueError):
    """The architecture can't be exported: its cache is not keys and values of each layer, or it takes no mask."""


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of what a layer caches for each token."""

    kv_heads: int
    key_size: int
    value_size: int


class DraftStepModule(nn.Module):
    """forward(ids [1, new], past keys and values of each layer) -> logits [1, vocab] of the last token, new ones."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model
        taken = inspect.signature(model.forward).parameters
        self._cache_name = cache_name(model)
        self._takes_positions = "position_ids" in taken
        self._keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        start, end = past[0].shape[0], past[0].shape[0] + ids.shape[1]
        layers = [_StepLayer(keys, values) for keys, values in zip(past[::2], past[1::2], strict=True)]
        positions = torch.arange(start, end)
        hidden = torch.arange(end)[None, :] > positions[:, None]  # [new, past + new]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        places = {"position_ids": positions[None]} if self._takes_positions else {}
        cache = {self._cache_name: Cache(layers=[*layers])}
        output = self._model(
            input_ids=ids, attention_mask=mask[None, None], use_cache=True, **cache, **places, **self._keeps_last
        )
        return output.logits[:, -1], *(tensor for layer in layers for tensor in layer.new)


class _StepLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's past keys and values, and the new ones of the step."""

    keys: Tensor  # [1, kv_heads, past, size]
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = (tensor.transpose(0, 1)[None] for tensor in (keys, values))
        self.is_initialized = True
        self.new: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        self.new = tuple(tensor[0].transpose(0, 1) for tensor in (key_states, value_states))
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        """The length of the past. The inherited method reads sizes that are unknown during the export."""
        return self.keys.shape[-2]


class _Product(nn.Module):
    """x @ weight + bias: the only form of a linear layer that the quantiser finds in the graph."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: [in, out]"""
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def cache_name(model: PreTrainedModel) -> str:
    """The name of the cache argument of the model's forward."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), "past_key_values")


@torch.no_grad()
def layer_sizes(model: PreTrainedModel) -> list[LayerSizes]:
    """The cache sizes of each layer, from a short run. Raises UnsupportedDraft for another kind of cache."""
    cache = DynamicCache()
    try:
        model(input_ids=torch.zeros((1, 3), dtype=torch.int64), use_cache=True, **{cache_name(model): cache})
        sizes = [_sizes_of(layer) for layer in cache.layers]
    except Exception as error:  # a model may raise anything for a cache of another kind
        raise UnsupportedDraft(f"it does not run with a cache of keys and values: {error}") from error
    if len(sizes) != model.config.get_text_config().num_hidden_layers:
        raise UnsupportedDraft(f"it caches keys and values in {len(sizes)} layers, not in each")
    return sizes


def _sizes_of(layer: Any) -> LayerSizes:
    return LayerSizes(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])


def example_inputs(sizes: Sequence[LayerSizes], num_past: int = 5, num_new: int = 3) -> tuple[Tensor, ...]:
    """Inputs of a step in order. The exporter would take sizes 0 and 1 as constants."""
    past = [torch.zeros(num_past, size.kv_heads, n) for size in sizes for n in (size.key_size, size.value_size)]
    return torch.zeros((1, num_new), dtype=torch.int64), *past


def with_products(model: PreTrainedModel) -> None:
    """Replaces the linear layers, GPT-2's transposed ones too, by equal `_Product` layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _Product(child.weight.detach().T, child.bias))
            elif type(child) is Conv1D:
                setattr(module, name, _Product(child.weight.detach(), child.bias))
