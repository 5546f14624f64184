"""Attention of one pass: every session over its own cache alone.

Invariant: on the CPU what a token gets depends on its session's cache and its position, not on the other sessions, not
on how many tokens are fed with it, and not on the cache's capacity: kernels.py computes it so.

`attend` is the function that transformers' attention interface calls in each layer; the pass travels to it in the
model's forward keyword arguments.
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
from shared.policies.batching import round_to_kv_step

ATTENTION_NAME = "dsd"
EVERYTHING = 1 << 40  # positions that a token sees without a sliding window
THREAD_WORK = 1 << 21  # multiplications of a layer that are worth a thread of their own: some 0.1 ms

# Arguments that change nothing here: positions are in the pass already, and the rest is about what is returned.
_HARMLESS = {"cache_position", "position_ids", "position_embeddings", "use_cache", "output_attentions", "training"}
_HARMLESS |= {"output_hidden_states", "output_router_logits", "return_dict"}


class AttentionRefused(Exception):
    """A layer asks for something that `attend` can't do; the message says what."""


class Attention(Protocol):
    """What computes the attention of one forward call."""

    def layer(self, index: int, heads: Heads) -> Tensor:
        """Output [tokens, query_heads, head_dim] of layer `index`."""


@dataclass(frozen=True)
class Heads:
    """One layer's projections for the tokens of a pass, and the parameters of its attention."""

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
    """transformers' attention function `dsd`; raises AttentionRefused for arguments it doesn't understand."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if unknown:
        raise AttentionRefused(f"its attention takes {', '.join(unknown)}")
    if dsd_attention is None:
        raise AttentionRefused("it does not hand the forward arguments down to its attention")
    if attention_mask is not None or is_causal is False or dropout:
        raise AttentionRefused("its attention is not plainly causal")
    if query.shape[-1] != value.shape[-1]:
        raise AttentionRefused("its keys and values have different sizes")
    heads = Heads(query[0], key[0], value[0], scaling, sliding_window)
    return dsd_attention.layer(module.layer_idx, heads)[None], None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION_NAME, attend)


@dataclass(frozen=True)
class Segment:
    """One session's tokens in a pass: tokens offset .. offset + num_tokens - 1 of the pass, at positions from start."""

    cache: KvCache
    start: int
    num_tokens: int
    offset: int


class PassAttention:
    """The attention of one verify pass over several sessions; tokens behind the last segment are dead."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments

    def layer(self, index: int, heads: Heads) -> Tensor:
        """As in Attention."""
        raise NotImplementedError

    @staticmethod
    def of(segments: Sequence[Segment], device: torch.device) -> PassAttention:
        """What suits the device."""
        return (CompiledAttention if device.type == "cpu" else FusedAttention)(segments)


class CompiledAttention(PassAttention):
    """On the CPU, in caches of tiles; dead tokens get zeros."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__(segments)
        places = [(each.start, each.num_tokens, each.offset, each.cache.capacity) for each in segments]
        self._places = np.array(places, np.int64)
        self._caches = np.stack([each.cache.addresses for each in segments], axis=1)  # [layers, segments, 2]
        self._work = [each.num_tokens * (each.start + each.num_tokens) for each in segments]
        self._shares: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by key heads and work

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
            self._places,
            self._caches[index],
            (kv_heads, heads.group, head_dim),
            np.float32(scale),
            heads.sliding_window or EVERYTHING,
        )
        kind = kv_heads, heads.group * head_dim
        if kind not in self._shares:
            self._shares[kind] = self._new_shares(*kind)
        first, *others = self._shares[kind]
        waiting = [_pool(torch.get_num_threads()).submit(kernels.attend, *arguments, share) for share in others]
        kernels.attend(*arguments, first)
        for each in waiting:
            each.result()
        return output

    def _new_shares(self, kv_heads: int, job_work: int) -> list[tuple[int, int]]:
        """Jobs of `kernels.attend` for each thread, about as much work each: the first and behind the last."""
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
    """Threads beside the calling one."""
    return ThreadPoolExecutor(num_threads - 1, "attention")


class FusedAttention(PassAttention):
    """On other devices: torch's fused kernel, segment by segment; dead tokens get zeros."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__(segments)
        self._masks: dict[tuple[int, int | None], list[Tensor]] = {}

    def layer(self, index: int, heads: Heads) -> Tensor:
        query_heads, num_tokens, head_dim = heads.query.shape
        kv_heads = heads.key.shape[0]
        output = heads.query.new_zeros(num_tokens, query_heads, head_dim)
        for segment, mask in zip(self.segments, self._masks_of(heads), strict=True):
            fed = slice(segment.offset, segment.offset + segment.num_tokens)
            segment.cache.write(index, segment.start, heads.key[:, fed], heads.value[:, fed])
            keys, values = segment.cache.seen(index, mask.shape[-1])
            queries = heads.query[:, fed].reshape(1, kv_heads, -1, head_dim)  # of a key head group x tokens
            attended = scaled_dot_product_attention(
                queries, keys[None], values[None], attn_mask=mask, scale=heads.scaling
            )
            output[fed] = attended.view(query_heads, -1, head_dim).transpose(0, 1)
        return output

    def _masks_of(self, heads: Heads) -> list[Tensor]:
        """Each segment's [1, 1, group x tokens, positions], added to the scores; built once for each kind of layer."""
        kind = (heads.group, heads.sliding_window)
        if kind not in self._masks:
            self._masks[kind] = list(self._new_masks(heads))
        return self._masks[kind]

    def _new_masks(self, heads: Heads) -> Iterator[Tensor]:
        device, dtype = heads.query.device, heads.query.dtype
        for segment in self.segments:
            positions = segment.start + torch.arange(segment.num_tokens, device=device)[:, None]
            seen = torch.arange(round_to_kv_step(segment.start + segment.num_tokens), device=device)
            hidden = seen > positions
            if heads.sliding_window is not None:
                hidden |= seen <= positions - heads.sliding_window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            yield mask.repeat(heads.group, 1)[None, None]


class LayoutRecorder:
    """Causal attention of one short sequence without a cache, that notes what each layer would have to keep."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def layer(self, index: int, heads: Heads) -> Tensor:
        if index in self.layers:
            raise AttentionRefused(f"its layer {index} attends more than once per pass")
        kv_heads, _, head_dim = heads.key.shape
        self.layers[index] = LayerShape(kv_heads, heads.group, head_dim, heads.sliding_window)
        keys, values = (kv.repeat_interleave(heads.group, dim=0) for kv in (heads.key, heads.value))
        return scaled_dot_product_attention(heads.query, keys, values, is_causal=True).transpose(0, 1)
