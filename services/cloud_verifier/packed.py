"""Linear layers and activations whose result for a row does not depend on the rows beside it.

Invariant: for every row count that `model.py` feeds (multiples of `row_step`), each output row has the same bits as
alone, with any number of threads where the kernels are packed. The packed operators are private to torch (what
inductor's freezing emits), so they live here alone: where they are missing or wrong, plain linear layers stand in.

Packing lays a weight out once the way oneDNN's matrix product wants it, which plain `linear` does again in each call.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

HEAD_ROWS = 8  # rows of float32 matrix products come in multiples of this
SERIAL_ELEMENTS = 1 << 14  # torch splits no activation up to this size among threads (gelu; others twice that)
VECTOR_ELEMENTS = 64  # and its vector code, unrolled, takes so many at a time


class PackedLinear(nn.Module):
    """y = x W^T + b on the CPU with W [out, in] packed; x [..., in] and y in W's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


class PlainLinear(nn.Module):
    """The same with torch's public operator, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = weight
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class MixedLinear(nn.Module):
    """float32 results of 16-bit rows and weights on cuda, where one kernel does it without a float32 copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = weight.t()
        self._bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.mm(x, self._weight, out_dtype=torch.float32)
        return y if self._bias is None else y + self._bias


class Float32Head(nn.Module):
    """The language model head with float32 logits: rounded to bfloat16 the best logits would tie (docs/sampling.md)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packed: bool) -> None:
        super().__init__()
        self._linear: nn.Module
        self._input_dtype = torch.float32
        if weight.device.type == "cuda" and weight.dtype != torch.float32:
            self._linear = MixedLinear(weight, bias)
            self._input_dtype = weight.dtype
        else:
            kind = PackedLinear if packed else PlainLinear
            self._linear = kind(weight.float(), None if bias is None else bias.float())
        self._vocab_size = len(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [1, rows, vocab] of hidden states [1, rows, hidden]; rows may be 0."""
        rows = hidden[0].to(self._input_dtype)
        if not len(rows):
            return rows.new_empty((1, 0, self._vocab_size), dtype=torch.float32)
        logits: Tensor = self._linear(pad(rows, (0, 0, 0, -len(rows) % HEAD_ROWS)))
        return logits[None, : len(rows)]


class RowwiseActivation(nn.Module):
    """An activation in blocks of rows so small that torch does not split them among threads.

    At the end of each thread's share torch leaves its vector code for the scalar one, which rounds some functions
    differently; where a share ends depends on the number of rows and threads. A block has no such ends inside.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        whole = VECTOR_ELEMENTS // gcd(width, VECTOR_ELEMENTS)  # rows that end where a vector does
        num_rows = max(SERIAL_ELEMENTS // width // whole * whole, 1)
        blocks = [self._activation(rows) for rows in torch.split(x, num_rows, dim=-2)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-2)


def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch has the packed operators for dtype on this CPU, and they compute what they should."""
    weight = torch.linspace(-1, 1, 16 * 32).view(16, 32).to(dtype)
    rows = torch.linspace(1, -1, 8 * 32).view(8, 32).to(dtype)
    try:
        got = PackedLinear(weight, None)(rows)
    except (AttributeError, RuntimeError):  # no such operator; not for this CPU or build
        return False
    return torch.allclose(got.float(), linear(rows, weight).float(), rtol=0.02, atol=0.02)


def row_step(dtype: torch.dtype, *, packed: bool) -> int:
    """Row counts that are multiples of this give bit-equal rows (tests/verifier/test_packed.py).

    A single row takes another kernel in every dtype; plain float32 products differ up to 11 rows on two threads.
    """
    return 4 if packed and dtype != torch.float32 else HEAD_ROWS


def replace_layers(model: PreTrainedModel, *, packed: bool) -> None:
    """Swaps the model's linear layers (packed: their weights are freed one by one), activations and head in place."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    activations = _activation_classes() if head.weight.device.type == "cpu" else ()

    def replaced(module: nn.Module) -> nn.Module:
        if module is head:
            return Float32Head(module.weight, module.bias, packed=packed)
        if packed and type(module) is nn.Linear:
            return PackedLinear(module.weight, module.bias)
        if packed and type(module) is Conv1D:
            return PackedLinear(module.weight.t(), module.bias)
        if isinstance(module, activations):
            return RowwiseActivation(module)
        for name, _ in list(module.named_children()):
            setattr(module, name, replaced(getattr(module, name)))
        return module

    replaced(model)


def _activation_classes() -> tuple[type[nn.Module], ...]:
    entries: list[Any] = list(ACT2CLS.values())
    return tuple(entry[0] if isinstance(entry, tuple) else entry for entry in entries)
