"""The CPU kernels equal torch's operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from services.cloud_verifier.torch_engine import kernels
from services.cloud_verifier.torch_engine.kernels import like
from services.cloud_verifier.torch_engine.packed import CompiledNorm, CompiledSilu, silu_product

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def random_rows(num: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(num, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """float32: to a few ulp. bfloat16: rounding may differ only near a tie."""
    if found.dtype == torch.float32:
        return torch.allclose(found, wanted, rtol=2e-6, atol=1e-6)
    differing = found != wanted
    return bool(differing.float().mean() < 1e-3) and torch.allclose(found, wanted, rtol=2**-7, atol=1e-6)


@DTYPES
@pytest.mark.parametrize("width", [576, 100, 7])
def test_a_norm_is_transformers_own(width: int, dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = random_rows(1, width, dtype, seed=1)[0]
    rows = random_rows(60, width, dtype)
    with torch.inference_mode():
        assert alike(CompiledNorm(norm)(rows), norm(rows))


@DTYPES
@pytest.mark.parametrize("width", [1536, 100, 7])
def test_a_silu_and_its_product_are_torchs_own(width: int, dtype: torch.dtype) -> None:
    rows, factors = random_rows(60, width, dtype), random_rows(60, width, dtype, seed=1)
    assert alike(CompiledSilu()(rows), nn.SiLU()(rows))
    assert alike(silu_product(rows, factors), nn.SiLU()(rows) * factors)


@DTYPES
def test_numbers_that_lie_apart_are_found(dtype: torch.dtype) -> None:
    part = random_rows(60, 200, dtype)[:, :100]
    norm = LlamaRMSNorm(100).to(dtype)
    with torch.inference_mode():
        assert alike(CompiledNorm(norm)(part), norm(part))
        assert alike(CompiledSilu()(part), nn.SiLU()(part))


def test_a_silu_of_all_bfloat16_numbers_is_torchs_own() -> None:
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found, wanted = CompiledSilu()(numbers), nn.SiLU()(numbers.float()).to(torch.bfloat16)
    is_bound = numbers == -torch.inf  # 0 here, NaN in torch
    assert torch.equal(found.isnan() | is_bound, wanted.isnan())
    assert torch.allclose(found[~wanted.isnan()], wanted[~wanted.isnan()], rtol=2**-7, atol=1e-35)


@DTYPES
@pytest.mark.parametrize("head_dim", [64, 72, 6])
def test_heads_are_turned_as_by_transformers_to_the_last_bit(head_dim: int, dtype: torch.dtype) -> None:
    num_tokens, num_turned, num_heads = 9, 4, 6
    heads = random_rows(num_tokens * num_heads, head_dim, dtype).view(num_tokens, num_heads, head_dim)
    angles = torch.rand(num_tokens, head_dim // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    query = heads[:, :num_turned].transpose(0, 1)[None]
    wanted, _ = apply_rotary_pos_emb(query, query, cos[None], sin[None])
    untouched = heads[:, num_turned:].clone()
    sin[:, : head_dim // 2] *= -1
    shape = num_tokens, num_turned, num_heads, head_dim
    kernels.rotate(heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), like(dtype), shape)
    assert torch.equal(heads[:, :num_turned], wanted[0].transpose(0, 1))
    assert torch.equal(heads[:, num_turned:], untouched)


@DTYPES
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    rows, factors = random_rows(40, 100, dtype), random_rows(40, 100, dtype, seed=1)
    norm = CompiledNorm(LlamaRMSNorm(100).to(dtype))
    with torch.inference_mode():
        normed, product = norm(rows), silu_product(rows, factors)
        for start, num in ((0, 1), (3, 2), (7, 33)):
            part = slice(start, start + num)
            assert torch.equal(norm(rows[part].contiguous()), normed[part])
            assert torch.equal(silu_product(rows[part].contiguous(), factors[part].contiguous()), product[part])
