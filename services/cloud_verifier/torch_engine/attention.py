"""Attention of one pass: each session attends to its own KV cache.

Invariant: on the CPU a token's output depends on its session's KV cache and its position alone: not on the other
sessions, the number of tokens fed, or the capacity of the cache.

transformers' attention interface calls `attend` in each layer. The model's forward passes `dsd_attention` through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from services.cloud_verifier.torch_engine import kernels
from services.cloud_verifier.torch_engine.kernels import like, rows_of
from services.cloud_verifier.torch_engine.kv import KvCache, LayerShape
from shared.policies.kv_cache import round_to_kv_step

ATTENTION_NAME = "dsd"
NO_WINDOW = 1 << 40  # a sliding window larger than any context
THREAD_WORK = 1 << 21  # multiplications per thread and layer, some 0.1 ms; less work uses fewer threads

# Ignored arguments: the pass has the positions, and the others select return values.
_IGNORED = {"cache_position", "position_ids", "position_embeddings", "use_cache", "output_attentions", "training"}
_IGNORED |= {"output_hidden_states", "output_router_logits", "return_dict"}


class UnsupportedAttention(Exception):
    """A layer needs something that `attend` does not implement."""


class Attention(Protocol):
    """Computes the attention of one forward call."""

    def layer(self, index: int, heads: Heads) -> Tensor:
        """Output [tokens, query_heads, head_dim] of layer `index`."""


@dataclass(frozen=True)
class Heads:
    """One layer's projections for the tokens of a pass, and its attention parameters."""

    query: Tensor  # [query_heads, tokens, head_dim]
    key: Tensor  # [kv_heads, tokens, head_dim]
    value: Tensor
    scaling: float | None
    sliding_window: int | None

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.query.shape[0] // self.key.shape[0]


def attend(
    module: nn.Module,
    query: Tensor,  # [1, query_heads, tokens, head_dim]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    dsd_attention: Attention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function `dsd`: [1, tokens, query_heads, head_dim]. Raises UnsupportedAttention."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _IGNORED)
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    if dsd_attention is None:
        raise UnsupportedAttention("it does not pass the forward arguments to its attention")
    if attention_mask is not None or is_causal is False or dropout:
        raise UnsupportedAttention("its attention is not purely causal")
    if query.shape[-1] != value.shape[-1]:
        raise UnsupportedAttention("its keys and values have different sizes")
    heads = Heads(query[0], key[0], value[0], scaling, sliding_window)
    return dsd_attention.layer(module.layer_idx, heads)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION_NAME, attend)


@dataclass(frozen=True)
class Segment:
    """One session's tokens of a pass: indices [offset, offset + num_tokens), at positions from `start` on."""

    cache: KvCache
    start: int
    num_tokens: int
    offset: int


def pass_attention(segments: Sequence[Segment], device: torch.device) -> Attention:
    """Attention of one verify pass. Tokens after the last segment are padding, whose output is 0."""
    return (CompiledAttention if device.type == "cpu" else FusedAttention)(segments)


class CompiledAttention:
    """On the CPU: kernels.attend over tiled caches."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        rows = [(each.start, each.num_tokens, each.offset, each.cache.capacity) for each in segments]
        self._segments = np.array(rows, np.int64)  # [segments, 4]
        self._caches = np.stack([each.cache.addresses for each in segments], axis=1)  # [layers, segments, 2]
        self._work = [each.num_tokens * (each.start + each.num_tokens) for each in segments]
        self._shares: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by key heads and work per job

    def layer(self, index: int, heads: Heads) -> Tensor:
        query, key, value = map(rows_of, (heads.query, heads.key, heads.value))
        query_heads, num_tokens, head_dim = query.shape
        kv_heads = key.shape[0]
        output = query.new_zeros(num_tokens, query_heads, head_dim)
        scale = head_dim**-0.5 if heads.scaling is None else heads.scaling
        arguments = (
            *(query.data_ptr(), query.stride()[:2]),
            *(key.data_ptr(), key.stride()[:2]),
            *(value.data_ptr(), value.stride()[:2]),
            output.data_ptr(),
            like(query.dtype),
            self._segments,
            self._caches[index],
            (kv_heads, heads.group, head_dim),
            np.float32(scale),
            heads.sliding_window or NO_WINDOW,
        )
        kind = kv_heads, heads.group * head_dim
        if kind not in self._shares:
            self._shares[kind] = self._split_jobs(*kind)
        first, *others = self._shares[kind]
        futures = [_pool(torch.get_num_threads()).submit(kernels.attend, *arguments, share) for share in others]
        kernels.attend(*arguments, first)
        for each in futures:
            each.result()
        return output

    def _split_jobs(self, kv_heads: int, job_work: int) -> list[tuple[int, int]]:
        """Job ranges [first, end) of `kernels.attend`, one per thread, of about equal work."""
        num_jobs = len(self._work) * kv_heads
        num_threads = min(torch.get_num_threads(), sum(self._work) * kv_heads * job_work // THREAD_WORK + 1, num_jobs)
        if num_threads == 1:
            return [(0, num_jobs)]
        done = np.repeat(np.array(self._work), kv_heads).cumsum()
        wanted = done[-1] * np.arange(1, num_threads)[:, None] / num_threads
        cuts = np.abs(done - wanted).argmin(axis=1) + 1
        return list(pairwise(sorted({0, *cuts.tolist(), num_jobs})))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """`num_threads` counts the calling thread."""
    return ThreadPoolExecutor(num_threads - 1, "attention")


class FusedAttention:
    """On other devices: torch's fused kernel, one call per segment."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._masks: dict[tuple[int, int | None], list[Tensor]] = {}

    def layer(self, index: int, heads: Heads) -> Tensor:
        query_heads, num_tokens, head_dim = heads.query.shape
        kv_heads = heads.key.shape[0]
        output = heads.query.new_zeros(num_tokens, query_heads, head_dim)
        for segment, mask in zip(self._segments, self._masks_of(heads), strict=True):
            fed = slice(segment.offset, segment.offset + segment.num_tokens)
            segment.cache.write(index, segment.start, heads.key[:, fed], heads.value[:, fed])
            keys, values = segment.cache.read(index, mask.shape[-1])
            queries = heads.query[:, fed].reshape(1, kv_heads, -1, head_dim)  # [1, kv_heads, group x tokens, head_dim]
            attended = scaled_dot_product_attention(
                queries, keys[None], values[None], attn_mask=mask, scale=heads.scaling
            )
            output[fed] = attended.view(query_heads, -1, head_dim).transpose(0, 1)
        return output

    def _masks_of(self, heads: Heads) -> list[Tensor]:
        """Additive mask [1, 1, group x tokens, positions] per segment, cached per kind of layer."""
        kind = (heads.group, heads.sliding_window)
        if kind not in self._masks:
            self._masks[kind] = list(self._new_masks(heads))
        return self._masks[kind]

    def _new_masks(self, heads: Heads) -> Iterator[Tensor]:
        device, dtype = heads.query.device, heads.query.dtype
        for segment in self._segments:
            positions = segment.start + torch.arange(segment.num_tokens, device=device)[:, None]
            seen = torch.arange(round_to_kv_step(segment.start + segment.num_tokens), device=device)
            hidden = seen > positions
            if heads.sliding_window is not None:
                hidden |= seen <= positions - heads.sliding_window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            yield mask.repeat(heads.group, 1)[None, None]


class LayoutRecorder:
    """Causal attention of one short sequence without a KV cache. Records each layer's shape in `layers`."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def layer(self, index: int, heads: Heads) -> Tensor:
        if index in self.layers:
            raise UnsupportedAttention(f"its layer {index} attends more than once per pass")
        kv_heads, _, head_dim = heads.key.shape
        self.layers[index] = LayerShape(kv_heads, heads.group, head_dim, heads.sliding_window)
        keys, values = (kv.repeat_interleave(heads.group, dim=0) for kv in (heads.key, heads.value))
        return scaled_dot_product_attention(heads.query, keys, values, is_causal=True).transpose(0, 1)
