"""The greedy draw from candidates equals the argmax of exact logits, whatever rows are computed with it."""

from __future__ import annotations

import pytest
import torch

from services.cloud_verifier.sampler import NO_DRAW
from services.cloud_verifier.torch_engine.head import BestToken, Float32Head
from services.cloud_verifier.torch_engine.packed import PackedLinear, packing_works

if not packing_works(torch.bfloat16):
    pytest.skip("this torch or CPU has no packed bfloat16 operators", allow_module_level=True)

VOCAB, HIDDEN = 3001, 96


def random(*shape: int, seed: int, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(torch.bfloat16)


def exact(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    logits = hidden.double() @ weight.double().T
    return logits if bias is None else logits + bias.double()


def best(weight: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return BestToken(weight, bias, PackedLinear(weight, bias))(hidden)


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_best_token_is_that_of_the_exact_logits_though_rounded_ones_tie(with_bias: bool) -> None:
    weight = random(VOCAB, HIDDEN, seed=0)
    bias = random(VOCAB, seed=1) if with_bias else None
    hidden = random(1000, HIDDEN, seed=2)
    logits = exact(hidden, weight, bias)
    rounded = logits.to(torch.bfloat16)
    num_ties = int(((rounded == rounded.amax(dim=-1, keepdim=True)).sum(dim=-1) > 1).sum())
    assert num_ties > 10, "with rounded logits alone this would be a guess"
    assert torch.equal(best(weight, hidden, bias), logits.argmax(dim=-1))


@pytest.mark.parametrize("with_bias", [False, True])
def test_logits_of_a_bfloat16_head_are_exact_to_a_few_millionths_though_no_weight_is_kept_in_float32(
    with_bias: bool,
) -> None:
    weight, hidden = random(VOCAB, HIDDEN, seed=0), random(50, HIDDEN, seed=2)
    bias = random(VOCAB, seed=1) if with_bias else None
    head = Float32Head(weight, bias, packed=True)
    logits, expected = head(hidden[None])[0], exact(hidden, weight, bias)
    assert logits.dtype is torch.float32
    assert ((logits - expected).abs() <= expected.abs() * 2.0**-17 + 1e-5).all()
    assert (logits - expected.to(torch.bfloat16)).abs().max() > 0.01, "rounded logits would not do"
    assert head.rounded is not None


def test_of_equal_tokens_the_lowest_id_is_the_best() -> None:
    weight = random(VOCAB, HIDDEN, seed=0)
    hidden = random(50, HIDDEN, seed=1)
    before = exact(hidden, weight).argmax(dim=-1)
    for copy in (weight[before[0]].clone(), weight[before[1]].clone()):
        weight[[7, 2900]] = copy
        again = exact(hidden, weight).argmax(dim=-1)
        assert torch.equal(best(weight, hidden), again)
        assert 7 in again


def test_the_best_token_does_not_depend_on_the_rows_beside_it() -> None:
    weight, hidden = random(VOCAB, HIDDEN, seed=0, size=0.01), random(60, HIDDEN, seed=1)
    best_token = BestToken(weight, None, PackedLinear(weight, None))
    together = best_token(hidden)
    for start, end in ((0, 1), (1, 3), (3, 8), (8, 60)):
        assert torch.equal(best_token(hidden[start:end]), together[start:end])


def test_a_row_that_is_not_finite_has_no_best_token_and_the_others_keep_theirs() -> None:
    weight, hidden = random(VOCAB, HIDDEN, seed=0), random(3, HIDDEN, seed=1)
    expected = best(weight, hidden)
    hidden[1, 5] = torch.nan
    assert best(weight, hidden).tolist() == [expected[0], NO_DRAW, expected[2]]
    hidden[1, 5] = torch.inf
    assert best(weight, hidden).tolist() == [expected[0], NO_DRAW, expected[2]]
