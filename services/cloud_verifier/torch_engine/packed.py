"""Linear layers, norms and activations whose output rows do not depend on the other rows.

Invariant: for every row count that a layer's RowRule allows, each output row has the same bits. The rule is found by
probing when a model is loaded. The packed operators are private to torch (inductor's freezing emits them) and used in
this file alone. If they are missing or wrong, plain linear layers replace them.

Packing converts a weight once to the layout of oneDNN's matrix product. Plain `linear` converts it in each call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from services.cloud_verifier.torch_engine import kernels
from services.cloud_verifier.torch_engine.kernels import like

UNLIMITED = 1 << 30
# Maximum rows per product, tried in this order: oneDNN's AMX kernels compute up to 32 rows differently from more rows
# (docs/performance.md).
MAX_ROWS = ((UNLIMITED, 32), (16,), (8,))
PROBED_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 24, 30, 32, 36, 40, 48, 64, 72, 96, 128, 144, 208, 256)
PROBED_AT_OFFSET = (4, 8, 16, 32, 36, 64)  # probed a second time, from row PROBE_OFFSET on
PROBE_OFFSET = 5
SERIAL_ELEMENTS = 1 << 14  # torch computes gelu of up to this size in one thread (others: twice that)
VECTOR_ELEMENTS = 64  # of one iteration of its unrolled vector code

_ACTIVATIONS = tuple(entry[0] if isinstance(entry, tuple) else entry for entry in dict[str, Any](ACT2CLS).values())

log = structlog.get_logger(__name__)

# Sizes of the kernel caches of oneDNN and of torch's packed layers, read at the first product. The default is 1024
# kernels of up to 1 MiB each (docs/performance.md).
for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(name, "128")


def row_step(num_rows: int) -> int:
    """Row counts are rounded up to a multiple of this: 2 for up to 32 rows, at most an eighth of larger counts.

    oneDNN builds a kernel for each row count, which takes milliseconds and 0.5 MiB.
    """
    return 1 << max(1, (num_rows - 1).bit_length() - 4)


@dataclass(frozen=True)
class RowRule:
    """Row counts that a layer accepts: at least `min_rows`, multiples of `step` and `row_step`; powers of two.

    The layer computes at most `max_rows` of them in one product.
    """

    min_rows: int
    step: int
    max_rows: int = UNLIMITED

    def allows(self, num_rows: int) -> bool:
        return num_rows == self.round_up(num_rows)

    def round_up(self, num_rows: int) -> int:
        """The smallest allowed count >= num_rows."""
        step = max(self.step, row_step(num_rows))
        return max(self.min_rows, -(-num_rows // step) * step)


def strictest(rules: Iterable[RowRule]) -> RowRule:
    """The rule that satisfies all of `rules`."""
    all_of = list(rules)
    return RowRule(max(r.min_rows for r in all_of), max(r.step for r in all_of), min(r.max_rows for r in all_of))


# Products of one to three rows use other kernels, which are not faster and give other bits for some row counts. With a
# small enough `max_rows`, the last rule suffices for all kernels seen so far.
ROW_RULES = (RowRule(4, 2), RowRule(4, 4), RowRule(8, 8))
PLAIN_ROW_RULES = ROW_RULES[1:]  # of unpacked layers, whose bits also depend on the number of threads


class BlockedLinear(nn.Module):
    """A function of rows [..., rows, in] that computes blocks of at most `max_rows` rows."""

    max_rows = UNLIMITED

    def product(self, x: Tensor) -> Tensor:
        """Computes one block."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] <= self.max_rows:
            return self.product(x)
        return torch.cat([self.product(rows) for rows in torch.split(x, self.max_rows, dim=-2)], dim=-2)


class PackedLinear(BlockedLinear):
    """y = x W^T + b on the CPU with packed W [out, in]; x [..., in] and y have W's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def remainder(self, x: Tensor, y: Tensor) -> Tensor:
        """The rounding error of y = product(x): x W^T + b - y, rounded once to y's dtype."""
        rest: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, y, self._weight, self._bias, "sub")
        return rest


class PlainLinear(BlockedLinear):
    """The same with torch's public operator, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = weight
        self._bias = bias

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self._weight, self._bias)


class RowwiseActivation(nn.Module):
    """An activation in blocks of rows so small that torch computes each in one thread.

    torch computes the end of each thread's share with scalar code, which rounds some functions differently. The ends
    depend on the numbers of rows and threads. A block contains none.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        whole = VECTOR_ELEMENTS // gcd(width, VECTOR_ELEMENTS)  # rows that fill whole vectors
        num_rows = max(SERIAL_ELEMENTS // width // whole * whole, 1)
        num_given = x.shape[-2]
        if num_short := -num_given % whole:
            x = pad(x, (0, 0, 0, num_short))
        blocks = [self._activation(rows) for rows in torch.split(x, num_rows, dim=-2)]
        return blocks[0][..., :num_given, :] if len(blocks) == 1 else torch.cat(blocks, dim=-2)[..., :num_given, :]


def silu_product(x: Tensor, factors: Tensor) -> Tensor:
    """silu(x), rounded, times factors of the same shape; both contiguous on the CPU."""
    output = torch.empty_like(x)
    kernels.silu(x.data_ptr(), factors.data_ptr(), output.data_ptr(), like(x.dtype), x.numel())
    return output


class CompiledSilu(nn.Module):
    """SiLU on the CPU by kernels.silu."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # Phi-3 passes a slice of wider rows
        return silu_product(x, torch.ones_like(x))


class CompiledNorm(nn.Module):
    """LlamaRMSNorm on the CPU by kernels.rms_norm."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self._weight, self._epsilon = norm.weight, np.float32(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]"""
        x = x.contiguous()
        output, width = torch.empty_like(x), x.shape[-1]
        places = x.data_ptr(), self._weight.data_ptr(), output.data_ptr()
        kernels.rms_norm(*places, like(x.dtype), x.numel() // width, width, self._epsilon)
        return output


def compiled_module(module: nn.Module) -> nn.Module:
    """The CPU replacement of an activation or norm, or the module itself if it needs none."""
    if type(module) in (nn.SiLU, SiLUActivation):
        return CompiledSilu()
    if type(module) is LlamaRMSNorm:
        return CompiledNorm(module)
    return RowwiseActivation(module) if isinstance(module, _ACTIVATIONS) else module


def packing_works(dtype: torch.dtype) -> bool:
    """Whether torch has the packed operators for dtype on this CPU, and they compute correctly."""
    weight = torch.linspace(-1, 1, 16 * 32).view(16, 32).to(dtype)
    rows = torch.linspace(1, -1, 8 * 32).view(8, 32).to(dtype)
    try:
        packed = PackedLinear(weight, None)
        rounded = packed(rows)
        whole = rounded.float() + packed.remainder(rows, rounded).float()
    except (AttributeError, RuntimeError):  # no such operator; not for this CPU or build
        return False
    exact = linear(rows.float(), weight.float())
    return torch.allclose(rounded.float(), exact, rtol=0.02, atol=0.02) and torch.allclose(whole, exact, atol=1e-4)


@torch.inference_mode()
def row_rule(layer: nn.Module, num_in: int, dtype: torch.dtype, device: torch.device) -> RowRule:
    """The first rule of the layer's kind under which a row's bits do not depend on the row count and the row's index.

    Kernels differ by dtype, sizes, torch build and CPU. On a GPU, where bits are not guaranteed, the last rule. On the
    CPU `layer` must be a BlockedLinear, and its `max_rows` is set.
    """
    rules = ROW_RULES if isinstance(layer, PackedLinear) else PLAIN_ROW_RULES
    if device.type != "cpu":
        return rules[-1]
    assert isinstance(layer, BlockedLinear)
    rows = torch.randn(PROBED_ROWS[-1], num_in, generator=torch.Generator().manual_seed(0)).to(dtype)
    differing: dict[int, set[int]] = {}  # by max_rows
    for limits in MAX_ROWS:
        for rule in rules:
            for max_rows in limits:
                if max_rows not in differing:
                    differing[max_rows] = _differing(layer, rows, max_rows)
                if not any(map(rule.allows, differing[max_rows])):
                    layer.max_rows = max_rows
                    return replace(rule, max_rows=max_rows)
    log.warning("a row's bits depend on the row count", rows=sorted(differing[max_rows]), dtype=str(dtype))
    return replace(rules[-1], max_rows=max_rows)


class RowRules:
    """The row rules of a model's layers. Layers of one shape use the same kernel, so one of them is probed."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], RowRule] = {}  # by shape of the weight

    def probe(self, layer: nn.Module, weight: Tensor) -> None:
        """weight: of the layer, [out, in]."""
        if weight.shape not in self._found:
            self._found[weight.shape] = row_rule(layer, weight.shape[1], weight.dtype, weight.device)

    @property
    def strictest(self) -> RowRule:
        """The rule that satisfies all probed layers."""
        return strictest(self._found.values() or ROW_RULES[-1:])


def _differing(layer: BlockedLinear, rows: Tensor, max_rows: int) -> set[int]:
    """Probed row counts whose output differs from the same rows of the whole batch. Sets the layer's `max_rows`."""
    layer.max_rows = max_rows
    together = layer(rows)

    def differs(first: int, num: int) -> bool:
        return not torch.equal(layer(rows[first : first + num]), together[first : first + num])

    at_start = {num for num in PROBED_ROWS if differs(0, num)}
    return at_start | {num for num in PROBED_AT_OFFSET if differs(PROBE_OFFSET, num)}


def probe_max_rows(weight: Tensor, *, packed: bool) -> int:
    """The `max_rows` of a large layer with the weight's dtype and device. Small layers seldom show a difference."""
    shape = (512, 2048)
    large = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(weight)
    layer = (PackedLinear if packed else PlainLinear)(large, None)
    return row_rule(layer, shape[1], weight.dtype, weight.device).max_rows


def replace_layers(model: PreTrainedModel, new_head: nn.Module, *, packed: bool) -> RowRule:
    """Replaces the model's linear layers, activations, norms and head in place. Packing frees weights one by one.

    Returns the row rule of all layers except the head.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    is_cpu = head.weight.device.type == "cpu"
    rules = RowRules()
    kind = PackedLinear if packed else PlainLinear

    def probed(weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer = kind(weight, bias)
        rules.probe(layer, weight)
        return layer

    def replaced(module: nn.Module) -> nn.Module:
        if module is head:
            return new_head
        if type(module) is nn.Linear:
            return probed(module.weight, module.bias)
        if type(module) is Conv1D:
            return probed(module.weight.t(), module.bias)
        if is_cpu and (new := compiled_module(module)) is not module:
            return new
        for name, _ in list(module.named_children()):
            setattr(module, name, replaced(getattr(module, name)))
        return module

    replaced(model)
    return rules.strictest


def limit_rows(modules: Iterable[nn.Module], max_rows: int) -> None:
    """Applies the lowest limit to all layers, because a probe may miss a difference by chance."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, BlockedLinear):
                layer.max_rows = min(layer.max_rows, max_rows)
