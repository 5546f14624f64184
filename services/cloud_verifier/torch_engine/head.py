"""The language model head: float32 logits, and greedy tokens without float32 logits of the whole vocabulary.

Invariant: a row's logits and greedy token do not depend on the other rows. Logits are float32 even if the model is
bfloat16, because the highest logits would tie in bfloat16 (docs/sampling.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from services.cloud_verifier.sampler import NO_DRAW
from services.cloud_verifier.torch_engine import kernels
from services.cloud_verifier.torch_engine.packed import ROW_RULES, BlockedLinear, PackedLinear, PlainLinear, row_rule

ROUNDING = 1.05 * 2.0**-8  # relative bfloat16 rounding error, with a margin for the error of the rounded sum
FLOAT32_UNIT = 2.0**-24


class MixedLinear(nn.Module):
    """float32 results of 16-bit rows and weights on cuda. One kernel computes them without a float32 copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = weight.t()
        self._bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.mm(x, self._weight, out_dtype=torch.float32)
        return y if self._bias is None else y + self._bias


class SplitLinear(BlockedLinear):
    """The same on the CPU with a relative error of 2^-18: the packed layer's 16-bit result plus its rounding error.

    Two 16-bit products read as many bytes as one float32 product, and need no float32 copy of the weights.
    """

    def __init__(self, rounded: PackedLinear) -> None:
        super().__init__()
        self._rounded = rounded

    def product(self, x: Tensor) -> Tensor:
        y = self._rounded.product(x)
        logits: Tensor = y.float() + self._rounded.remainder(x, y)
        return logits


class Float32Head(nn.Module):
    """float32 logits of hidden states in the model's dtype."""

    rounded: PackedLinear | None  # the 16-bit layer, if the logits are computed from one

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packed: bool) -> None:
        super().__init__()
        self._linear: nn.Module
        self._input_dtype = weight.dtype
        self.rounded = None
        if weight.device.type == "cuda" and weight.dtype != torch.float32:
            self._linear = MixedLinear(weight, bias)
        elif packed and weight.dtype != torch.float32:
            self.rounded = PackedLinear(weight, bias)
            self._linear = SplitLinear(self.rounded)
        else:
            kind = PackedLinear if packed else PlainLinear
            self._linear = kind(weight.float(), None if bias is None else bias.float())
            self._input_dtype = torch.float32
        self._vocab_size, num_in = weight.shape
        self.row_rule = row_rule(self._linear, num_in, self._input_dtype, weight.device)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [1, rows, vocab] of hidden states [1, rows, hidden]; rows >= 0."""
        rows = hidden[0].to(self._input_dtype)
        if not len(rows):
            return rows.new_empty((1, 0, self._vocab_size), dtype=torch.float32)
        logits: Tensor = self._linear(pad(rows, (0, 0, 0, self.row_rule.round_up(len(rows)) - len(rows))))
        return logits[None, : len(rows)]


class BestToken:
    """The greedy draw of bfloat16 hidden states on the CPU, at half the cost of float32 logits.

    All logits are computed in bfloat16. The candidates are the tokens within the error bound of the highest logit,
    which holds for any order of summation. Their logits are then summed in float64, and the highest one wins; of equal
    ones the lowest id. The result does not depend on the number of rows, so all rows are computed at once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rounded: PackedLinear) -> None:
        """weight: [vocab, hidden] bfloat16, not copied; rounded: the layer of this weight and bias."""
        self._weight, self._bias, self._rounded = weight, bias, rounded
        vocab_size, num_in = weight.shape
        self._num_blocks = -(-vocab_size // kernels.BLOCK_IDS)
        self._summing_error = num_in * FLOAT32_UNIT * float(weight.float().norm(dim=-1).max())
        self(weight[:1])  # compiles the kernels

    def __call__(self, hidden: Tensor) -> Tensor:
        """Token ids [rows] of hidden states [rows, hidden]; NO_DRAW if the highest logit is not finite."""
        num_rows = len(hidden)
        rounded = self._rounded.product(pad(hidden, (0, 0, 0, ROW_RULES[0].round_up(num_rows) - num_rows))).contiguous()
        logits = rounded.data_ptr(), num_rows, rounded.shape[-1]
        block_peaks = np.empty((num_rows, self._num_blocks), np.float32)
        kernels.block_peaks(*logits, block_peaks)
        peaks = block_peaks.max(axis=-1)
        errors = ROUNDING * np.abs(peaks) + self._summing_error * hidden.float().norm(dim=-1).numpy()
        lowest = (peaks - 2 * errors).astype(np.float32)
        rows, token_ids = map(torch.from_numpy, kernels.candidates(*logits, block_peaks, lowest))
        return self._best_of(hidden, rows, token_ids)

    def _best_of(self, hidden: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        """The best candidate of each row; candidates are in the order of (row, id)."""
        scores = (self._weight[token_ids].double() * hidden[rows].double()).sum(dim=-1)
        if self._bias is not None:
            scores += self._bias[token_ids].double()
        best = [(-torch.inf, NO_DRAW)] * len(hidden)
        for row, token_id, score in zip(rows.tolist(), token_ids.tolist(), scores.tolist(), strict=True):
            if score > best[row][0]:
                best[row] = score, token_id
        return torch.tensor([token_id for _, token_id in best])
