"""Attention of one pass: every session over its own cache alone, in blocks of tokens.

Invariant: what a token gets depends on its session's cache and its position, not on the other sessions, not on how
many tokens are fed with it, and not on the cache's capacity. It holds because a token is computed over as many cached
positions as its own position asks for (a multiple of KV_STEP), whatever is fed with it, in blocks whose size changes no
bit: of LEAST_ROWS to MOST_ROWS rows, where `find_blocks` has seen the kernel compute rows alike in all of these,
else of always the same size. Short blocks are filled up with dead queries.

`attend` is the function that transformers' attention interface calls in each layer; the pass travels to it in the
model's forward keyword arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from services.cloud_verifier.kv import KV_STEP, KvCache, KvLayout, LayerShape, round_to_step
from services.cloud_verifier.packed import fill_step

ATTENTION_NAME = "dsd"
# Rows (query heads of a key head x tokens) of a block: fewer are computed by other kernels, more have not been tried;
# fewer at most where kernels differ for more.
LEAST_ROWS = 4
MOST_ROWS = (192, 32, 16)
FIXED_BLOCK_TOKENS = 4
PROBED_TOKENS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 24, 30, 32, 36, 48, 64, 96, 128, 160)
PROBED_LENGTHS = tuple(KV_STEP * n for n in (1, 2, 3, 5, 8, 9, 17, 32))

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


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(queries keys^T scale + mask) values for each key head: [kv_heads, rows, head_dim].

    queries: [kv_heads, rows, head_dim]; keys, values: [kv_heads, positions, head_dim]; mask: [1, rows, positions].

    On the CPU two products and a softmax, scores rounded to the model's dtype as in transformers' `eager` attention:
    with few rows that takes half the time of torch's fused kernel (docs/performance.md).
    """
    if queries.device.type != "cpu":
        fused = scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask[None], scale=scale)
        return fused[0]
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


@dataclass(frozen=True)
class Blocks:
    """How many tokens a block has."""

    min_tokens: int
    max_tokens: int

    def fill(self, num_tokens: int) -> int:
        """Size of the block for so many tokens, of few sizes for the sake of packed.fill_step's kernels."""
        step = fill_step(num_tokens)
        return min(max(-(-num_tokens // step) * step, self.min_tokens), self.max_tokens)


def find_blocks(layout: KvLayout, most_rows: int) -> Blocks:
    """Of a model: of several sizes where rows have the same bits in all of them, or on a GPU, else of one. `most_rows`:
    that products of the model's layers may have."""
    groups = [layer.group for layer in layout.layers]
    least = -(-LEAST_ROWS // min(groups))
    shapes = {(layer.num_kv_heads, layer.group, layer.head_dim) for layer in layout.layers}
    for most in sorted({min(most, most_rows) for most in MOST_ROWS}, reverse=True):
        blocks = Blocks(least, max(least, most // max(groups)))
        if layout.device.type != "cpu" or all(_rows_are_alike(layout, *shape, blocks) for shape in shapes):
            return blocks
    return Blocks(FIXED_BLOCK_TOKENS, FIXED_BLOCK_TOKENS)


@torch.inference_mode()
def _rows_are_alike(layout: KvLayout, kv_heads: int, group: int, head_dim: int, blocks: Blocks) -> bool:
    generator = torch.Generator().manual_seed(0)

    def random(num_rows: int) -> Tensor:
        return torch.randn(kv_heads, num_rows, head_dim, generator=generator).to(layout.dtype)

    num_rows = blocks.max_tokens * group
    for length in PROBED_LENGTHS:
        queries, values = random(num_rows), random(length)
        keys = random(length).transpose(1, 2).contiguous().transpose(1, 2)  # as a cache has them
        mask = torch.zeros(1, num_rows, length, dtype=layout.dtype)
        mask[..., length - KV_STEP // 2 :] = -torch.inf
        together = masked_attention(queries, keys, values, mask, head_dim**-0.5)
        for rows in sorted({group * blocks.fill(tokens) for tokens in PROBED_TOKENS if tokens < blocks.max_tokens}):
            alone = masked_attention(queries[:, :rows], keys, values, mask[:, :rows], head_dim**-0.5)
            if not torch.equal(alone, together[:, :rows]):
                return False
    return True


@dataclass(frozen=True)
class Segment:
    """One session's tokens in a pass: tokens offset .. offset + num_tokens - 1 of the pass, at positions from start."""

    cache: KvCache
    start: int
    num_tokens: int
    offset: int

    def pieces(self, blocks: Blocks) -> Iterator[Piece]:
        """Its tokens in order, cut where one sees KV_STEP positions more than the one before."""
        first = 0
        while first < self.num_tokens:
            seen = round_to_step(self.start + first + 1)
            count = min(seen - (self.start + first), self.num_tokens - first)
            for begin in range(first, first + count, blocks.max_tokens):
                num_tokens = min(blocks.max_tokens, first + count - begin)
                yield Piece(self, begin, num_tokens, blocks.fill(num_tokens), seen)
            first += count


@dataclass
class Piece:
    """A block of a segment's tokens that see the same number of positions."""

    segment: Segment
    first: int  # of the segment's tokens
    num_tokens: int
    block_tokens: int  # more than num_tokens where dead queries fill up
    seen: int  # positions, the rejected and empty ones that the mask hides among them
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Behind its last token of the pass."""
        return self.segment.offset + self.first + self.num_tokens

    def slots(self, num_dead: int) -> list[int]:
        """Token of the pass in each slot of the block: behind its own up to `num_dead` more that follow them, and in
        all slots that are left the last one again."""
        last = self.num_tokens + num_dead - 1
        return [self.segment.offset + self.first + min(slot, last) for slot in range(self.block_tokens)]

    def attend(self, index: int, queries: Tensor, heads: Heads) -> Tensor:
        """Layer `index`: [kv_heads, group x block_tokens, head_dim] of queries in the same shape."""
        keys, values = self.segment.cache.seen(index, self.seen)
        scale = queries.shape[-1] ** -0.5 if heads.scaling is None else heads.scaling
        return masked_attention(queries, keys, values, self._mask(heads), scale)

    def _mask(self, heads: Heads) -> Tensor:
        """[1, group x block_tokens, seen], added to the scores; built once per pass and kind of layer."""
        kind = (heads.group, heads.sliding_window)
        if kind not in self._masks:
            device, dtype = heads.query.device, heads.query.dtype
            slots = torch.arange(self.block_tokens, device=device).clamp_max(self.num_tokens - 1)
            positions = self.segment.start + self.first + slots[:, None]
            seen = torch.arange(self.seen, device=device)
            hidden = seen > positions
            if heads.sliding_window is not None:
                hidden |= seen <= positions - heads.sliding_window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            self._masks[kind] = mask.repeat(heads.group, 1)[None]
        return self._masks[kind]


class _Shelf:
    """The pieces of a pass whose blocks have the same size: their queries are laid out together."""

    def __init__(self, pieces: Sequence[Piece], num_living: int, num_tokens: int, device: torch.device) -> None:
        """Of the pass's num_tokens tokens the first num_living are some session's."""
        dead = [num_tokens - num_living if piece.end == num_living else 0 for piece in pieces]
        self.slots = [slot for piece, num_dead in zip(pieces, dead, strict=True) for slot in piece.slots(num_dead)]
        self._pieces = pieces
        self._block_tokens = pieces[0].block_tokens
        is_in_order = self.slots == list(range(num_tokens))
        self._gathered = None if is_in_order else torch.tensor(self.slots, device=device)

    def attend(self, index: int, heads: Heads) -> Tensor:
        """[slots, query_heads, head_dim]"""
        query_heads, _, head_dim = heads.query.shape
        tokens, kv_heads = self._block_tokens, query_heads // heads.group
        queries = heads.query if self._gathered is None else heads.query[:, self._gathered]
        # -> [blocks, kv_heads, group x block_tokens, head_dim]
        queries = queries.reshape(kv_heads, heads.group, -1, tokens, head_dim).permute(2, 0, 1, 3, 4)
        queries = queries.reshape(-1, kv_heads, heads.group * tokens, head_dim)
        outputs = [piece.attend(index, block, heads) for piece, block in zip(self._pieces, queries, strict=True)]
        output = torch.stack(outputs).view(-1, query_heads, tokens, head_dim)
        return output.transpose(1, 2).reshape(-1, query_heads, head_dim)


class PassAttention:
    """The attention of one verify pass over several sessions."""

    def __init__(self, segments: Sequence[Segment], num_tokens: int, blocks: Blocks, device: torch.device) -> None:
        """num_tokens: all tokens of the pass, with the dead ones behind the last segment."""
        self.segments = segments
        by_size: dict[int, list[Piece]] = {}
        for piece in (piece for segment in segments for piece in segment.pieces(blocks)):
            by_size.setdefault(piece.block_tokens, []).append(piece)
        num_living = sum(segment.num_tokens for segment in segments)
        self._shelves = [_Shelf(pieces, num_living, num_tokens, device) for pieces in by_size.values()]
        slots = [slot for shelf in self._shelves for slot in shelf.slots]
        slot_of = {token: slot for slot, token in enumerate(slots)}
        homes = [slot_of.get(token, 0) for token in range(num_tokens)]  # dead tokens get what is at least finite
        is_in_order = homes == list(range(len(slots)))
        self._homes = None if is_in_order else torch.tensor(homes, device=device)

    def layer(self, index: int, heads: Heads) -> Tensor:
        for segment in self.segments:
            fed = slice(segment.offset, segment.offset + segment.num_tokens)
            segment.cache.write(index, segment.start, heads.key[:, fed], heads.value[:, fed])
        outputs = [shelf.attend(index, heads) for shelf in self._shelves]
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return output if self._homes is None else output[self._homes]


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
