"""One step of a Hugging Face causal language model as torch's exporter can write it down: the past in, the new out.

Invariant: the step computes what the model itself computes for the tokens behind that past, for any number of past and
of new tokens. Positions and mask are made here from the tensors' sizes, so the model builds none that would depend on
values; keys and values cross the border tokens first, [tokens, kv_heads, head_dim].
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
    """The architecture keeps something else than keys and values, or takes no mask."""


@dataclass(frozen=True)
class LayerSizes:
    """What a layer keeps for each token."""

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
    """A layer's past, and what the step adds to it."""

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
        """Of the past; the inherited one looks at values of sizes, which are not known while exporting."""
        return self.keys.shape[-2]


class _Product(nn.Module):
    """x @ weight + bias, with the weight as it lies in the graph: the only form of a linear layer that is quantised."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: [in, out]"""
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def cache_name(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), "past_key_values")


@torch.no_grad()
def layer_sizes(model: PreTrainedModel) -> list[LayerSizes]:
    """What each layer keeps, seen in a short run. Raises UnsupportedDraft for a model that does not keep it so."""
    cache = DynamicCache()
    try:
        model(input_ids=torch.zeros((1, 3), dtype=torch.int64), use_cache=True, **{cache_name(model): cache})
        sizes = [_sizes_of(layer) for layer in cache.layers]
    except Exception as error:  # what a model does with a cache that isn't made for it
        raise UnsupportedDraft(f"it does not run with a cache of keys and values ({error})") from error
    if len(sizes) != model.config.get_text_config().num_hidden_layers:
        raise UnsupportedDraft(f"it keeps keys and values in {len(sizes)} places, not in each layer")
    return sizes


def _sizes_of(layer: Any) -> LayerSizes:
    return LayerSizes(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])


def example_inputs(sizes: Sequence[LayerSizes], num_past: int = 5, num_new: int = 3) -> tuple[Tensor, ...]:
    """Inputs of a step in their order. Sizes 0 and 1 would be taken for constants."""
    past = [torch.zeros(num_past, size.kv_heads, n) for size in sizes for n in (size.key_size, size.value_size)]
    return torch.zeros((1, num_new), dtype=torch.int64), *past


def with_products(model: PreTrainedModel) -> None:
    """Replaces the model's linear layers, GPT-2's transposed ones too, by products that compute the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _Product(child.weight.detach().T, child.bias))
            elif type(child) is Conv1D:
                setattr(module, name, _Product(child.weight.detach(), child.bias))
