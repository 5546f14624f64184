"""Attention of a pass: equal to torch's own, and blocks of a size that no kernel rounds differently."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.cloud_verifier import attention
from services.cloud_verifier.attention import FIXED_BLOCK_TOKENS, Blocks, Segment, find_blocks, masked_attention
from services.cloud_verifier.kv import KV_STEP, KvCache, KvLayout, LayerShape
from services.cloud_verifier.packed import UNLIMITED

CPU = torch.device("cpu")


def layout(group: int = 3, head_dim: int = 64, dtype: torch.dtype = torch.float32) -> KvLayout:
    return KvLayout((LayerShape(2, group, head_dim, None),), dtype, CPU)


def test_masked_attention_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, n, 16, generator=generator) for n in (6, 64, 64))
    mask = torch.zeros(1, 6, 64).masked_fill(torch.rand(1, 6, 64, generator=generator) < 0.5, -torch.inf)
    expected = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=0.3)
    assert torch.allclose(masked_attention(queries, keys, values, mask, 0.3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("group", "most_rows", "blocks"),
    [
        (1, UNLIMITED, Blocks(4, 192)),
        (3, UNLIMITED, Blocks(2, 64)),
        (8, UNLIMITED, Blocks(1, 24)),
        (3, 32, Blocks(2, 10)),
        (48, 32, Blocks(1, 1)),
    ],
)
def test_blocks_have_few_and_many_rows_where_kernels_compute_them_alike(
    group: int, most_rows: int, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rowwise(queries: torch.Tensor, *others: object) -> torch.Tensor:
        return queries * 2

    monkeypatch.setattr(attention, "masked_attention", rowwise)
    assert find_blocks(layout(group), most_rows) == blocks


@pytest.mark.parametrize(
    ("odd_rows", "blocks"),
    [(36, Blocks(2, 10)), (18, Blocks(2, 5)), (6, Blocks(FIXED_BLOCK_TOKENS, FIXED_BLOCK_TOKENS))],
)
def test_blocks_leave_out_the_sizes_that_a_kernel_computes_differently(
    odd_rows: int, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(queries: torch.Tensor, *others: object) -> torch.Tensor:
        return queries * (1 + 1e-6 * (queries.shape[1] == odd_rows))

    monkeypatch.setattr(attention, "masked_attention", odd)
    assert find_blocks(layout(), UNLIMITED) == blocks


@pytest.mark.parametrize("blocks", [Blocks(2, 64), Blocks(4, 4), Blocks(1, 10)])
def test_a_token_sees_as_many_positions_as_its_own_asks_for_whatever_is_fed_with_it(blocks: Blocks) -> None:
    cache = KvCache(layout(), 4 * KV_STEP)
    for start, num_tokens in ((0, 1), (KV_STEP - 1, 1), (KV_STEP - 3, 5), (10, 3 * KV_STEP), (KV_STEP, 7)):
        tokens = []
        for piece in Segment(cache, start, num_tokens, offset=0).pieces(blocks):
            assert blocks.min_tokens <= piece.block_tokens <= blocks.max_tokens
            assert len(piece.slots(0)) == piece.block_tokens
            for token in range(piece.first, piece.first + piece.num_tokens):
                tokens.append(token)
                assert piece.seen == ((start + token) // KV_STEP + 1) * KV_STEP
        assert tokens == list(range(num_tokens))


def test_a_block_is_filled_up_with_the_dead_tokens_behind_it_and_then_with_its_last_one() -> None:
    segment = Segment(KvCache(layout(), KV_STEP), 10, num_tokens=5, offset=7)
    (piece,) = segment.pieces(Blocks(8, 64))
    assert piece.end == 12
    assert piece.slots(0) == [7, 8, 9, 10, 11, 11, 11, 11]
    assert piece.slots(2) == [7, 8, 9, 10, 11, 12, 13, 13]


def test_blocks_come_in_few_sizes() -> None:
    assert [Blocks(2, 64).fill(n) for n in (1, 2, 3, 16, 17, 33, 50, 64)] == [2, 2, 4, 16, 18, 36, 52, 64]
    assert {Blocks(4, 4).fill(n) for n in range(1, 5)} == {4}
