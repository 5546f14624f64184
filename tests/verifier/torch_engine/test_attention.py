"""Attention of a pass equals torch's attention. A token's bits do not depend on the rest of the pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.cloud_verifier.torch_engine import attention
from services.cloud_verifier.torch_engine.attention import (
    CompiledAttention,
    FusedAttention,
    Heads,
    Segment,
)
from services.cloud_verifier.torch_engine.kv import KV_STEP, KvCache, KvLayout, LayerShape, Prefix

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = [  # head_dims that are not multiples of LANES, and groups larger than MOST_ROWS
    LayerShape(3, 3, 64, None),
    LayerShape(1, 1, 16, None),
    LayerShape(2, 7, 72, None),
    LayerShape(1, 60, 128, None),
    LayerShape(2, 4, 80, 20),
    LayerShape(1, 2, 64, KV_STEP),
]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layout(shape: LayerShape, dtype: torch.dtype, *, is_tiled: bool = True) -> KvLayout:
    return KvLayout((shape,), dtype, CPU, is_tiled)


def random_heads(shape: LayerShape, num_tokens: int, dtype: torch.dtype, seed: int = 0) -> Heads:
    """[heads, tokens, head_dim] as a view of [tokens, heads, head_dim], like a network's."""
    generator = torch.Generator().manual_seed(seed)
    num_heads = shape.num_kv_heads * (shape.group + 2)
    heads = torch.randn(num_tokens, num_heads, shape.head_dim, generator=generator).to(dtype).transpose(0, 1)
    sizes = [shape.num_kv_heads * shape.group, shape.num_kv_heads, shape.num_kv_heads]
    return Heads(*torch.split(heads, sizes), scaling=0.2, sliding_window=shape.sliding_window)


def of_tokens(heads: Heads, tokens: slice) -> Heads:
    cut = {name: getattr(heads, name)[:, tokens] for name in ("query", "key", "value")}
    return replace(heads, **cut)


def expected(heads: Heads) -> Tensor:
    """torch's attention over the whole text in float64: [tokens, query_heads, head_dim]."""
    keys, values = (each.double().repeat_interleave(heads.group, dim=0) for each in (heads.key, heads.value))
    num_tokens = keys.shape[1]
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    if heads.sliding_window is not None:
        mask &= torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1 - heads.sliding_window)
    attended = scaled_dot_product_attention(heads.query.double(), keys, values, attn_mask=mask, scale=heads.scaling)
    return attended.transpose(0, 1)


def fed(kind: type[CompiledAttention | FusedAttention], cache: KvCache, heads: Heads, cuts: list[int]) -> Tensor:
    """Outputs of a text fed in chunks that end at `cuts`."""
    parts = []
    for start, end in zip([0, *cuts], [*cuts, heads.query.shape[1]], strict=True):
        segment = Segment(cache, start, end - start, offset=0)
        parts.append(kind([segment]).layer(0, of_tokens(heads, slice(start, end))))
    return torch.cat(parts)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [CompiledAttention, FusedAttention])
def test_attention_of_a_text_in_chunks_is_torchs_own_of_the_whole(
    kind: type[CompiledAttention | FusedAttention], shape: LayerShape, dtype: torch.dtype
) -> None:
    heads = random_heads(shape, 150, dtype)
    cache = KvCache(layout(shape, dtype, is_tiled=kind is CompiledAttention), 150)
    found = fed(kind, cache, heads, [1, 5, 63, 64, 70, 128])
    tolerance = 2e-5 if dtype is torch.float32 else 2e-2
    assert torch.allclose(found.double(), expected(heads), atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("thread_work", [1, attention.THREAD_WORK])
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tokens_bits_depend_on_nothing_that_is_fed_with_it(
    shape: LayerShape, dtype: torch.dtype, thread_work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "THREAD_WORK", thread_work)
    rng = random.Random(1)
    lengths = [140, 30, 200]
    texts = [random_heads(shape, length, dtype, seed) for seed, length in enumerate(lengths)]
    alone = [fed(CompiledAttention, KvCache(layout(shape, dtype), 200), text, []) for text in texts]
    caches = [KvCache(layout(shape, dtype), length) for length in lengths]
    done = [0] * len(texts)
    while any(num < length for num, length in zip(done, lengths, strict=True)):
        segments, parts, offset = [], [], 0
        for index in rng.sample(range(len(texts)), len(texts)):
            num = min(rng.choice([1, 2, 7, 40]), lengths[index] - done[index])
            if num:
                segments.append(Segment(caches[index], done[index], num, offset))
                parts.append((index, slice(done[index], done[index] + num)))
                offset += num
        dead = of_tokens(texts[0], slice(0, 3))
        pieces = [*(of_tokens(texts[index], tokens) for index, tokens in parts), dead]
        together = {
            name: torch.cat([getattr(piece, name) for piece in pieces], dim=1) for name in ("query", "key", "value")
        }
        output = CompiledAttention(segments).layer(0, replace(dead, **together))
        for segment, (index, tokens) in zip(segments, parts, strict=True):
            found = output[segment.offset : segment.offset + segment.num_tokens]
            assert torch.equal(found, alone[index][tokens])
            done[index] = tokens.stop
        assert not output[offset:].any()


def test_what_was_rolled_back_or_copied_as_a_prefix_changes_no_bit() -> None:
    shape, dtype = SHAPES[0], torch.bfloat16
    text, wrong = random_heads(shape, 100, dtype), random_heads(shape, 100, dtype, seed=1)
    first, second = (KvCache(layout(shape, dtype), capacity) for capacity in (100, 300))
    alone = fed(CompiledAttention, first, text, [])
    bad = {name: torch.full_like(getattr(wrong, name), torch.nan) for name in ("key", "value")}
    fed(CompiledAttention, first, replace(wrong, **bad), [])
    again = fed(CompiledAttention, first, of_tokens(text, slice(0, 70)), [])
    assert torch.equal(again, alone[:70])
    second.copy(Prefix(first, 70))
    assert second.length == 70
    for cache in (first, second):
        rest = CompiledAttention([Segment(cache, 70, 30, 0)]).layer(0, of_tokens(text, slice(70, 100)))
        assert torch.equal(rest, alone[70:])


def test_a_number_that_is_not_finite_reaches_the_tokens_that_see_it_and_no_others() -> None:
    shape = SHAPES[0]
    for name in ("query", "key", "value"):
        heads = random_heads(shape, 100, torch.float32)
        getattr(heads, name)[:, 50] = torch.nan
        found = fed(CompiledAttention, KvCache(layout(shape, torch.float32), 100), heads, [20, 50, 51])
        is_nan = found.isnan().flatten(1)
        assert not is_nan[:50].any()
        assert is_nan[50].all()
        assert bool(is_nan[51:].all()) == (name != "query")


def test_the_threads_of_a_pass_get_about_as_much_work_each(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KvCache(layout(SHAPES[0], torch.float32), 1000)
    segments = [Segment(cache, 0, 1000, 0), *(Segment(cache, 500, 1, 1000 + i) for i in range(5))]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert CompiledAttention(segments)._split_jobs(3, 192) == [(0, 1), (1, 2), (2, 18)]
    assert CompiledAttention(segments[1:])._split_jobs(3, 192) == [(0, 15)]
