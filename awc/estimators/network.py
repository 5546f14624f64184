"""The network of the learned policy, in numpy: two residual blocks with SiLU.

Invariant: the output depends on the inputs alone; alone and in a batch it is equal up to rounding. Weights come from a
file of arrays that awc_training writes and that holds no code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bounds = NDArray[np.float64]  # [inputs]
NUM_BLOCKS = 2
# Multiplications of one matrix product. BLAS splits larger ones among threads, which wait for each other on busy cores.
LARGEST = 1 << 18
BOUNDS = ("mean", "scale", "low", "high")


class FoldedWeights(NamedTuple):
    """A network's arrays multiplied out into three products.

    With h = half the input of a SiLU, silu(2 h) = h + h tanh h =: s. Then
        [h1 | h2 | y]  = inputs @ entry + bias
        [h2 | y]      += s1 @ first
        y             += s2 @ second
    """

    entry: Array  # [inputs, 2 hidden + outputs]
    bias: Array  # [2 hidden + outputs]
    first: Array  # [hidden, hidden + outputs]
    second: Array  # [hidden, outputs]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PolicyNetwork:
    """z = (inputs - mean) / scale, x = w_in z + b_in, twice x += w2 silu(w1 x + b1) + b2, outputs = w_out x + b_out.

    Raises ValueError for arrays of other shapes or with numbers that are not finite.
    """

    mean: Bounds
    scale: Bounds
    low: Bounds  # of the inputs in training
    high: Bounds
    w_in: Array  # [inputs, hidden]
    b_in: Array  # [hidden]
    w1: Array  # [blocks, hidden, hidden]
    b1: Array  # [blocks, hidden]
    w2: Array  # [blocks, hidden, hidden]
    b2: Array  # [blocks, hidden]
    w_out: Array  # [hidden, outputs]
    b_out: Array  # [outputs]
    _folded: FoldedWeights = field(init=False)

    def __post_init__(self) -> None:
        num_inputs, hidden = self.w_in.shape
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(BOUNDS, (num_inputs,)),
            "b_in": (hidden,),
            "w1": (NUM_BLOCKS, hidden, hidden),
            "b1": (NUM_BLOCKS, hidden),
            "w2": (NUM_BLOCKS, hidden, hidden),
            "b2": (NUM_BLOCKS, hidden),
            "w_out": (hidden, *self.b_out.shape),
            "b_out": self.b_out.shape[:1],
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite numbers of shape {shape}, got shape {array.shape}")
        folded = self._fold()
        if not all(np.isfinite(array).all() for array in folded):
            raise ValueError("the arrays of a network, multiplied out, must be finite numbers")
        object.__setattr__(self, "_folded", folded)

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """[pairs, inputs] to [pairs, outputs]."""
        num = self.rows
        if len(inputs) <= num:
            return self._predict(inputs)
        return np.concatenate([self._predict(inputs[row : row + num]) for row in range(0, len(inputs), num)])

    @property
    def rows(self) -> int:
        """Most pairs of one matrix product."""
        return max(1, LARGEST // max(self._folded.entry.size, self._folded.first.size))

    def _predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        entry, bias, first, second = self._folded
        hidden = len(second)
        linear = inputs.astype(np.float32) @ entry + bias
        half = linear[:, :hidden]
        linear = linear[:, hidden:] + (half + half * np.tanh(half)) @ first
        half = linear[:, :hidden]
        return np.asarray(linear[:, hidden:] + (half + half * np.tanh(half)) @ second, np.float64)

    def _fold(self) -> FoldedWeights:
        w_in, b_in, w_out, b_out = (
            array.astype(np.float64) for array in (self.w_in, self.b_in, self.w_out, self.b_out)
        )
        (w1, w1_next), (b1, b1_next) = self.w1.astype(np.float64), self.b1.astype(np.float64)
        (w2, w2_next), (b2, b2_next) = self.w2.astype(np.float64), self.b2.astype(np.float64)
        behind = b_in + b2  # bias behind the first block
        entry = np.hstack([w_in @ w1 / 2, w_in @ w1_next / 2, w_in @ w_out])
        bias = [(b_in @ w1 + b1) / 2, (behind @ w1_next + b1_next) / 2, (behind + b2_next) @ w_out + b_out]
        first = [w2 @ w1_next / 2, w2 @ w_out]
        with np.errstate(all="ignore"):  # __post_init__ refuses overflows
            entry /= self.scale[:, None]
            folded = (entry, np.hstack(bias) - self.mean @ entry, np.hstack(first), w2_next @ w_out)
            return FoldedWeights(*(array.astype(np.float32) for array in folded))

    def knows(self, inputs: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[pairs, inputs] to [pairs]: whether all inputs lie within those of training."""
        is_within = (inputs >= self.low) & (inputs <= self.high)
        return np.asarray(is_within.all(axis=1), np.bool_)


ARRAYS = [each.name for each in fields(PolicyNetwork) if each.init]


def read_network(path: Path) -> PolicyNetwork:
    """Raises ValueError for a file without a network, OSError for one that can't be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            given: dict[str, Any] = {
                name: np.asarray(arrays[name], np.float64 if name in BOUNDS else np.float32) for name in arrays.files
            }
    except (BadZipFile, EOFError) as error:  # an empty or truncated file
        raise ValueError(f"{path} holds no network: {error}") from error
    if given.keys() != set(ARRAYS):
        raise ValueError(f"{path} should hold the arrays {sorted(ARRAYS)}, got {sorted(given)}")
    return PolicyNetwork(**given)


shipped_network = lru_cache(maxsize=2)(read_network)  # of the weights beside the policies


def write_network(network: PolicyNetwork, path: Path) -> None:
    np.savez(path, **{name: getattr(network, name) for name in ARRAYS})
