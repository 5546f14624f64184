"""One session's keys and values, and the layout they have in every layer of a model.

Invariant: positions 0 .. length - 1 hold what the model computed for the tokens fed last at these positions; what lies
behind is finite (zeros or a rejected tail) on devices where only a mask hides it. A session is rolled back by feeding
from an earlier position again; nothing is copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.cloud_verifier.torch_engine.lanes import COLUMNS
from shared.policies.batching import KV_STEP, round_to_kv_step
from shared.runtime.huge_pages import own_pages


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps per token, for whom, and how far back it sees (None: everything)."""

    num_kv_heads: int
    group: int  # query heads that share a key head
    head_dim: int
    sliding_window: int | None


@dataclass(frozen=True)
class KvLayout:
    """The cache of a model: one shape per layer.

    In tiles, as kernels.attend reads them on the CPU, a layer's keys are [kv_heads, capacity / KV_STEP, head_dim,
    KV_STEP], and its values [kv_heads, capacity, head_dim filled up]; else both are [kv_heads, capacity, head_dim].
    """

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    in_tiles: bool

    def shapes(self, capacity: int) -> list[tuple[int, ...]]:
        """Of each layer's keys and values, in turn."""
        found: list[tuple[int, ...]] = []
        for layer in self.layers:
            plain = (layer.num_kv_heads, capacity, layer.head_dim)
            tiles = (layer.num_kv_heads, capacity // KV_STEP, layer.head_dim, KV_STEP)
            filled = (*plain[:2], -(-layer.head_dim // COLUMNS) * COLUMNS)
            found += (tiles, filled) if self.in_tiles else (plain, plain)
        return found


class KvCache:
    """Room for `capacity` tokens of one session; `length` of them are valid."""

    def __init__(self, layout: KvLayout, capacity: int) -> None:
        self.capacity = round_to_kv_step(max(capacity, 1))
        self.length = 0
        shapes = layout.shapes(self.capacity)
        sizes = [math.prod(shape) for shape in shapes]
        rooms = torch.split(_zeros(layout, sum(sizes)), sizes)
        # Of each layer keys and values, in turn
        self.rooms = [room.view(shape) for room, shape in zip(rooms, shapes, strict=True)]
        self._in_tiles = layout.in_tiles
        self.addresses = np.array([room.data_ptr() for room in self.rooms], np.int64).reshape(-1, 2)  # [layers, 2]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Puts keys and values [kv_heads, tokens, head_dim] of one layer at positions from start on; not in tiles."""
        assert not self._in_tiles
        for room, new in zip(self.rooms[2 * layer : 2 * layer + 2], (keys, values), strict=True):
            room.narrow(1, start, new.shape[1]).copy_(new)

    def seen(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, length, head_dim] of one layer at the first `length` positions; no copies, not in
        tiles."""
        assert not self._in_tiles
        keys, values = self.rooms[2 * layer : 2 * layer + 2]
        return keys.narrow(1, 0, length), values.narrow(1, 0, length)

    def copy(self, prefix: Prefix) -> None:
        """Begins with what another cache of the same model holds at the same positions."""
        for index, (mine, theirs) in enumerate(zip(self.rooms, prefix.cache.rooms, strict=True)):
            is_tiles = self._in_tiles and index % 2 == 0
            num = round_to_kv_step(prefix.length) // KV_STEP if is_tiles else prefix.length
            mine.narrow(1, 0, num).copy_(theirs.narrow(1, 0, num))
        self.length = prefix.length


def _zeros(layout: KvLayout, num: int) -> Tensor:
    """All numbers of a cache in a row; on the CPU on pages of its own.

    Zeros, not garbage: a NaN behind a mask would still reach the sum as 0 x NaN.
    """
    if layout.device.type != "cpu":
        return torch.zeros(num, dtype=layout.dtype, device=layout.device)
    return torch.frombuffer(own_pages(num * layout.dtype.itemsize), dtype=layout.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The first `length` tokens that a cache holds."""

    cache: KvCache
    length: int
