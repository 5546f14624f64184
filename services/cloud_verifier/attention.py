"""Attention of one pass: every session over its own cache alone, in blocks of one fixed shape.

Invariant: what a token gets depends on its session's cache and its position, not on the other sessions, not on how
many tokens are fed with it, and not on the cache's capacity. It holds because each kernel call works on blocks of
exactly BLOCK_TOKENS tokens x all query heads of a key head (short ones are filled up with dead queries), over a
multiple of KV_STEP positions: a kernel never sees another shape that it could round differently.

`attend` is the function that transformers' attention interface calls in each layer; the pass travels to it in the
model's forward keyword arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from services.cloud_verifier.kv import KvCache, LayerShape, round_to_step

ATTENTION_NAME = "dsd"
BLOCK_TOKENS = 4

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


@dataclass
class Segment:
    """One session's tokens in a pass: tokens offset .. offset + num_tokens - 1 of the pass, at positions from start."""

    cache: KvCache
    start: int
    num_tokens: int
    offset: int
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // BLOCK_TOKENS)

    def slots(self) -> list[int]:
        """Token of the pass in each slot of the blocks; the last token also fills the dead slots."""
        last = self.num_tokens - 1
        return [self.offset + min(i, last) for i in range(self.num_blocks * BLOCK_TOKENS)]

    def attend(self, index: int, queries: Tensor, heads: Heads) -> Tensor:
        """[blocks, kv_heads, group x BLOCK_TOKENS, head_dim] of queries in the same shape; writes the cache first."""
        fed = slice(self.offset, self.offset + self.num_tokens)
        self.cache.write(index, self.start, heads.key[:, fed], heads.value[:, fed])
        length = round_to_step(self.start + self.num_tokens)
        keys = self.cache.keys[index][:, :length].expand(self.num_blocks, -1, -1, -1)
        values = self.cache.values[index][:, :length].expand(self.num_blocks, -1, -1, -1)
        mask = self._mask(length, queries, heads)
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=heads.scaling)

    def _mask(self, length: int, queries: Tensor, heads: Heads) -> Tensor:
        """[blocks, 1, group x BLOCK_TOKENS, length], added to the scores; built once per pass and kind of layer."""
        kind = (heads.group, heads.sliding_window)
        if kind not in self._masks:
            slots = torch.arange(self.num_blocks * BLOCK_TOKENS, device=queries.device)
            positions = self.start + slots.clamp_max(self.num_tokens - 1)[:, None]
            seen = torch.arange(length, device=queries.device)
            hidden = seen > positions
            if heads.sliding_window is not None:
                hidden |= seen <= positions - heads.sliding_window
            mask = torch.zeros(hidden.shape, dtype=queries.dtype, device=queries.device)
            mask = mask.masked_fill_(hidden, -torch.inf).view(self.num_blocks, 1, 1, BLOCK_TOKENS, length)
            self._masks[kind] = mask.expand(-1, -1, heads.group, -1, -1).flatten(2, 3)
        return self._masks[kind]


class PassAttention:
    """The attention of one verify pass over several sessions."""

    def __init__(self, segments: Sequence[Segment], num_tokens: int, device: torch.device) -> None:
        """num_tokens: all tokens of the pass, with the dead ones behind the last segment."""
        self._segments = segments
        slots = [slot for segment in segments for slot in segment.slots()]
        self._slots = torch.tensor(slots, device=device)
        self._homes = torch.tensor(self._find_homes(num_tokens), device=device)

    def layer(self, index: int, heads: Heads) -> Tensor:
        kv_heads, _, head_dim = heads.key.shape
        # [tokens, query_heads, head_dim] -> [blocks, kv_heads, group x BLOCK_TOKENS, head_dim]
        queries = heads.query.transpose(0, 1)[self._slots].view(-1, BLOCK_TOKENS, kv_heads, heads.group, head_dim)
        queries = queries.permute(0, 2, 3, 1, 4).reshape(-1, kv_heads, heads.group * BLOCK_TOKENS, head_dim)
        parts = torch.split(queries, [segment.num_blocks for segment in self._segments])
        outputs = [segment.attend(index, part, heads) for segment, part in zip(self._segments, parts, strict=True)]
        output = torch.cat(outputs).view(-1, kv_heads, heads.group, BLOCK_TOKENS, head_dim)
        output = output.permute(0, 3, 1, 2, 4).reshape(-1, kv_heads * heads.group, head_dim)
        return output[self._homes]

    def _find_homes(self, num_tokens: int) -> list[int]:
        """Slot of each token; the dead tokens of a pass share the first token's output, which is at least finite."""
        homes: list[int] = []
        first_slot = 0
        for segment in self._segments:
            homes.extend(range(first_slot, first_slot + segment.num_tokens))
            first_slot += segment.num_blocks * BLOCK_TOKENS
        return homes + [0] * (num_tokens - len(homes))


class LayoutRecorder:
    """Causal attention of one short sequence without a cache, that notes what each layer would have to keep."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def layer(self, index: int, heads: Heads) -> Tensor:
        if index in self.layers:
            raise AttentionRefused(f"its layer {index} attends more than once per pass")
        kv_heads, _, head_dim = heads.key.shape
        self.layers[index] = LayerShape(kv_heads, head_dim, heads.sliding_window)
        keys, values = (kv.repeat_interleave(heads.group, dim=0) for kv in (heads.key, heads.value))
        return scaled_dot_product_attention(heads.query, keys, values, is_causal=True).transpose(0, 1)
