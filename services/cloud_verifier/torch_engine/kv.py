"""The KV cache of one session, and its layout in every layer of a model.

Invariant: positions 0 .. length - 1 hold the keys and values of the tokens last fed there. Later positions are finite
(zeros or a rejected tail), because on some devices only a mask hides them. A rollback feeds earlier positions again and
copies nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.cloud_verifier.torch_engine.lanes import COLUMNS
from shared.policies.kv_cache import KV_STEP, round_to_kv_step
from shared.runtime.huge_pages import own_pages


@dataclass(frozen=True)
class LayerShape:
    """Shape of one attention layer."""

    num_kv_heads: int
    group: int  # query heads per key head
    head_dim: int
    sliding_window: int | None  # positions that a token attends to; None: all


@dataclass(frozen=True)
class KvLayout:
    """The KV cache of a model: one shape per layer.

    Plain keys and values are [kv_heads, capacity, head_dim]. Tiled ones, for kernels.attend, are [kv_heads, capacity /
    KV_STEP, head_dim, KV_STEP] and [kv_heads, capacity, head_dim rounded up to COLUMNS].
    """

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    is_tiled: bool

    def shapes(self, capacity: int) -> list[tuple[int, ...]]:
        """Shapes of keys and values, layer by layer."""
        shapes: list[tuple[int, ...]] = []
        for layer in self.layers:
            plain = (layer.num_kv_heads, capacity, layer.head_dim)
            tiles = (layer.num_kv_heads, capacity // KV_STEP, layer.head_dim, KV_STEP)
            padded = (*plain[:2], -(-layer.head_dim // COLUMNS) * COLUMNS)
            shapes += (tiles, padded) if self.is_tiled else (plain, plain)
        return shapes


class KvCache:
    """Holds up to `capacity` tokens of one session, of which `length` are valid."""

    def __init__(self, layout: KvLayout, capacity: int) -> None:
        self.capacity = round_to_kv_step(max(capacity, 1))
        self.length = 0
        shapes = layout.shapes(self.capacity)
        sizes = [math.prod(shape) for shape in shapes]
        buffers = torch.split(_zeros(layout, sum(sizes)), sizes)
        # Keys and values, layer by layer
        self.buffers = [buffer.view(shape) for buffer, shape in zip(buffers, shapes, strict=True)]
        self._is_tiled = layout.is_tiled
        self.addresses = np.array([each.data_ptr() for each in self.buffers], np.int64).reshape(-1, 2)  # [layers, 2]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [kv_heads, tokens, head_dim] of one layer from position `start` on; plain layout."""
        assert not self._is_tiled
        for buffer, new in zip(self.buffers[2 * layer : 2 * layer + 2], (keys, values), strict=True):
            buffer.narrow(1, start, new.shape[1]).copy_(new)

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Views [kv_heads, length, head_dim] of one layer's first keys and values; plain layout."""
        assert not self._is_tiled
        keys, values = self.buffers[2 * layer : 2 * layer + 2]
        return keys.narrow(1, 0, length), values.narrow(1, 0, length)

    def copy(self, prefix: Prefix) -> None:
        """Copies a prefix from another cache of the same model."""
        for index, (mine, theirs) in enumerate(zip(self.buffers, prefix.cache.buffers, strict=True)):
            has_tiles = self._is_tiled and index % 2 == 0
            num = round_to_kv_step(prefix.length) // KV_STEP if has_tiles else prefix.length
            mine.narrow(1, 0, num).copy_(theirs.narrow(1, 0, num))
        self.length = prefix.length


def _zeros(layout: KvLayout, num: int) -> Tensor:
    """One flat buffer for a whole cache, on the CPU on its own pages.

    It must not hold NaN: a masked position still adds 0 x NaN to the sum.
    """
    if layout.device.type != "cpu":
        return torch.zeros(num, dtype=layout.dtype, device=layout.device)
    return torch.frombuffer(own_pages(num * layout.dtype.itemsize), dtype=layout.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The first `length` tokens of a cache."""

    cache: KvCache
    length: int
