"""Linear layers, norms and activations whose result for a row does not depend on the rows beside it.

Invariant: for every row count that a layer's RowRule allows, each output row has the same bits; the rule is found by
trying when a model is loaded. The packed operators are private to torch (what inductor's freezing emits), so they live
here alone: where they are missing or wrong, plain linear layers stand in.

Packing lays a weight out once the way oneDNN's matrix product wants it, which plain `linear` does again in each call.
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
# Rows that a layer may compute at once, the later ones only where none of the earlier suffices: oneDNN's AMX kernels
# compute up to 32 rows otherwise than more (docs/performance.md).
MOST_ROWS = ((UNLIMITED, 32), (16,), (8,))
PROBED_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 24, 30, 32, 36, 40, 48, 64, 72, 96, 128, 144, 208, 256)
PROBED_ELSEWHERE = (4, 8, 16, 32, 36, 64)  # tried at another place among the rows as well
ELSEWHERE = 5
SERIAL_ELEMENTS = 1 << 14  # torch splits no activation up to this size among threads (gelu; others twice that)
VECTOR_ELEMENTS = 64  # and its vector code, unrolled, takes so many at a time


_ACTIVATIONS = tuple(entry[0] if isinstance(entry, tuple) else entry for entry in dict[str, Any](ACT2CLS).values())

log = structlog.get_logger(__name__)

# Kernels that oneDNN keeps for products of two activations, and torch's layer over it for those with packed weights;
# read at the first product. By default each keeps 1024, up to a MiB each (docs/performance.md).
for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(name, "128")


def fill_step(num_rows: int) -> int:
    """Numbers of rows are filled up to a multiple of this: 2 up to 32, then at most an eighth of the number.

    oneDNN builds a kernel for every number of rows it meets, in milliseconds and half a MiB.
    """
    return 1 << max(1, (num_rows - 1).bit_length() - 4)


@dataclass(frozen=True)
class RowRule:
    """Row counts that a layer is given: at least `least`, and multiples of `step` and of `fill_step`; powers of two.
    It computes at most `most` of them at once."""

    least: int
    step: int
    most: int = UNLIMITED

    def allows(self, num_rows: int) -> bool:
        return num_rows == self.fill(num_rows)

    def fill(self, num_rows: int) -> int:
        """The smallest count that is allowed and holds num_rows."""
        step = max(self.step, fill_step(num_rows))
        return max(self.least, -(-num_rows // step) * step)


def strictest(rules: Iterable[RowRule]) -> RowRule:
    """Under which all that have these rules are computed alike."""
    found = list(rules)
    return RowRule(max(r.least for r in found), max(r.step for r in found), min(r.most for r in found))


# One to three rows take other kernels, which are no faster and differ for some numbers. With few enough rows at once
# the last suffices for all kernels seen so far.
ROW_RULES = (RowRule(4, 2), RowRule(4, 4), RowRule(8, 8))
PLAIN_ROW_RULES = ROW_RULES[1:]  # of unpacked layers: which rows differ depends on the number of threads as well


class BlockedLinear(nn.Module):
    """A function of rows [..., rows, in], `most_rows` at once and no more."""

    most_rows = UNLIMITED

    def product(self, x: Tensor) -> Tensor:
        """Of at most `most_rows`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] <= self.most_rows:
            return self.product(x)
        return torch.cat([self.product(rows) for rows in torch.split(x, self.most_rows, dim=-2)], dim=-2)


class PackedLinear(BlockedLinear):
    """y = x W^T + b on the CPU with W [out, in] packed; x [..., in] and y in W's dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def remainder(self, x: Tensor, y: Tensor) -> Tensor:
        """x W^T + b - y, rounded once, in y's dtype: what rounding took from y = product(x)."""
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
        num_given = x.shape[-2]
        if num_short := -num_given % whole:
            x = pad(x, (0, 0, 0, num_short))
        blocks = [self._activation(rows) for rows in torch.split(x, num_rows, dim=-2)]
        return blocks[0][..., :num_given, :] if len(blocks) == 1 else torch.cat(blocks, dim=-2)[..., :num_given, :]


def silu_product(x: Tensor, factors: Tensor) -> Tensor:
    """silu(x), rounded, times factors of the same shape; contiguous, on the CPU."""
    output = torch.empty_like(x)
    kernels.silu(x.data_ptr(), factors.data_ptr(), output.data_ptr(), like(x.dtype), x.numel())
    return output


class CompiledSilu(nn.Module):
    """SiLU on the CPU by kernels.silu."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # Phi-3 gives a part of wider rows
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


def compiled(module: nn.Module) -> nn.Module:
    """What computes an activation or norm of a model on the CPU, or the module itself where it may stay."""
    if type(module) in (nn.SiLU, SiLUActivation):
        return CompiledSilu()
    if type(module) is LlamaRMSNorm:
        return CompiledNorm(module)
    return RowwiseActivation(module) if isinstance(module, _ACTIVATIONS) else module


def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch has the packed operators for dtype on this CPU, and they compute what they should."""
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
    """The first of its kind's rules under which the layer's rows have the same bits, whatever their number and place.

    Kernels differ by dtype, sizes, torch build and CPU. On a GPU, where bits are not promised, the last; on the CPU
    `layer` is a BlockedLinear, which afterwards computes as many rows at once as the rule says.
    """
    rules = ROW_RULES if isinstance(layer, PackedLinear) else PLAIN_ROW_RULES
    if device.type != "cpu":
        return rules[-1]
    assert isinstance(layer, BlockedLinear)
    rows = torch.randn(PROBED_ROWS[-1], num_in, generator=torch.Generator().manual_seed(0)).to(dtype)
    differing: dict[int, set[int]] = {}  # by the most rows at once
    for limits in MOST_ROWS:
        for rule in rules:
            for most in limits:
                if most not in differing:
                    differing[most] = _differing(layer, rows, most)
                if not any(map(rule.allows, differing[most])):
                    layer.most_rows = most
                    return replace(rule, most=most)
    log.warning("rows are computed otherwise beside others", rows=sorted(differing[most]), dtype=str(dtype))
    return replace(rules[-1], most=most)


class RowRules:
    """The row rules of a model's layers, of which those of one shape have one: it is their kernel's."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], RowRule] = {}  # by shape of the weight

    def probe(self, layer: nn.Module, weight: Tensor) -> None:
        """Finds the rule of a layer of this weight [out, in]."""
        if weight.shape not in self._found:
            self._found[weight.shape] = row_rule(layer, weight.shape[1], weight.dtype, weight.device)

    @property
    def strictest(self) -> RowRule:
        """Under which all that were probed are computed alike."""
        return strictest(self._found.values() or ROW_RULES[-1:])


def _differing(layer: BlockedLinear, rows: Tensor, most: int) -> set[int]:
    """Probed numbers of rows that have other bits than the same ones among all, `most` of them computed at once."""
    layer.most_rows = most
    together = layer(rows)

    def differs(first: int, num: int) -> bool:
        return not torch.equal(layer(rows[first : first + num]), together[first : first + num])

    here = {num for num in PROBED_ROWS if differs(0, num)}
    return here | {num for num in PROBED_ELSEWHERE if differs(ELSEWHERE, num)}


def most_rows(weight: Tensor, *, packed: bool) -> int:
    """Rows that products of a model's layers may have at once, as a large one shows: small ones seldom show anything.
    `weight`: any of the model's, for its dtype and device."""
    shape = (512, 2048)
    large = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(weight)
    layer = (PackedLinear if packed else PlainLinear)(large, None)
    return row_rule(layer, shape[1], weight.dtype, weight.device).most


def replace_layers(model: PreTrainedModel, new_head: nn.Module, *, packed: bool) -> RowRule:
    """Swaps the model's linear layers (packed: their weights are freed one by one), activations and head in place.

    Returns the row rule that suits all of them but the head.
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
        if is_cpu and (new := compiled(module)) is not module:
            return new
        for name, _ in list(module.named_children()):
            setattr(module, name, replaced(getattr(module, name)))
        return module

    replaced(model)
    return rules.strictest


def limit_rows(modules: Iterable[nn.Module], most: int) -> None:
    """What one layer needs, all get: that another shows no difference may be luck."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, BlockedLinear):
                layer.most_rows = min(layer.most_rows, most)
