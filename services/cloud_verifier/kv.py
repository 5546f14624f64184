"""One session's keys and values, and the layout they have in every layer of a model.

Invariant: positions 0 .. length - 1 hold what the model computed for the tokens fed last at these positions; what lies
behind is finite (zeros or a rejected tail), so that a mask hides it completely. Rolling back is feeding from a smaller
position again; nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

KV_STEP = 64  # attention sees a multiple of this many positions


def round_to_step(num_tokens: int) -> int:
    """The smallest multiple of KV_STEP that holds num_tokens."""
    return -(-num_tokens // KV_STEP) * KV_STEP


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps per token, for whom, and how far back it sees (None: everything)."""

    num_kv_heads: int
    group: int  # query heads that share a key head
    head_dim: int
    sliding_window: int | None


@dataclass(frozen=True)
class KvLayout:
    """The cache of a model: one shape per layer."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in all layers."""
        return 2 * self.dtype.itemsize * sum(self.sizes(1))

    def sizes(self, capacity: int) -> list[int]:
        """Numbers that each layer's keys, and its values, have room for."""
        return [capacity * layer.num_kv_heads * layer.head_dim for layer in self.layers]


class KvCache:
    """Room for `capacity` tokens of one session; `length` of them are valid."""

    def __init__(self, layout: KvLayout, capacity: int) -> None:
        self.capacity = round_to_step(max(capacity, 1))
        self.length = 0
        self.keys: list[Tensor] = []  # each [kv_heads, capacity, head_dim]
        self.values: list[Tensor] = []
        is_cpu = layout.device.type == "cpu"
        sizes = [size for size in layout.sizes(self.capacity) for _ in range(2)]
        rooms = iter(torch.split(_zeros(layout, self.capacity), sizes))
        for layer in layout.layers:
            shape = (layer.num_kv_heads, self.capacity, layer.head_dim)
            # attention.py's product of queries and keys reads them transposed on the CPU
            keys = next(rooms).view(shape[0], shape[2], shape[1]).mT if is_cpu else next(rooms).view(shape)
            self.keys.append(keys)
            self.values.append(next(rooms).view(shape))

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Puts keys and values [kv_heads, tokens, head_dim] of one layer at the positions from start on."""
        self.keys[layer].narrow(1, start, keys.shape[1]).copy_(keys)
        self.values[layer].narrow(1, start, values.shape[1]).copy_(values)

    def seen(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, length, head_dim] of one layer at the first `length` positions; no copies."""
        return self.keys[layer].narrow(1, 0, length), self.values[layer].narrow(1, 0, length)

    def copy(self, prefix: Prefix) -> None:
        """Begins with what another cache of the same model holds at the same positions."""
        for mine, theirs in zip([*self.keys, *self.values], [*prefix.cache.keys, *prefix.cache.values], strict=True):
            mine.narrow(1, 0, prefix.length).copy_(theirs.narrow(1, 0, prefix.length))
        self.length = prefix.length


def _zeros(layout: KvLayout, capacity: int) -> Tensor:
    """All numbers of a cache in a row. Zeros, not garbage: a NaN behind the mask would still reach the sum as 0 x NaN.

    On the CPU pages of their own, which count from their first use on and go back to the system with the cache: among
    other allocations, and freed in another order than they were made, caches leave holes that stay.
    """
    num = sum(2 * size for size in layout.sizes(capacity))
    if layout.device.type != "cpu":
        return torch.zeros(num, dtype=layout.dtype, device=layout.device)
    pages = mmap(-1, num * layout.dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=layout.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The first `length` tokens that a cache holds."""

    cache: KvCache
    length: int
