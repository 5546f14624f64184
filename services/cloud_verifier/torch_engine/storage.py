"""How kernels.py is told of tensors: their kind of numbers, and rows whose numbers lie next to each other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LIKE: dict[torch.dtype, NDArray[np.float32] | NDArray[np.uint16]] = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
}


def like(dtype: torch.dtype) -> NDArray[np.float32] | NDArray[np.uint16]:
    """An empty array of numbers as lanes.py wants it."""
    return _LIKE[dtype]


def rows_of(x: Tensor) -> Tensor:
    """x, or a copy where numbers of its last dimension lie apart."""
    return x if x.stride(-1) == 1 else x.contiguous()
