"""Linear layers, activations and head equal the plain ones. A row's bits do not depend on the other rows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, LlamaConfig

from services.cloud_verifier.torch_engine import packed
from services.cloud_verifier.torch_engine.head import Float32Head
from services.cloud_verifier.torch_engine.model import pick_dtype
from services.cloud_verifier.torch_engine.network import TransformersNetwork
from services.cloud_verifier.torch_engine.packed import (
    ROW_RULES,
    UNLIMITED,
    BlockedLinear,
    PackedLinear,
    PlainLinear,
    RowRule,
    RowRules,
    RowwiseActivation,
    limit_rows,
    packing_works,
    row_rule,
    strictest,
)

HAS_BF16 = pick_dtype("auto", torch.device("cpu")) is torch.bfloat16
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")),
]
MAX_ROWS = 64


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_layer_equals_a_plain_one(dtype: torch.dtype, with_bias: bool) -> None:
    if not packing_works(dtype):
        pytest.skip("this torch or CPU has no packed operators")
    weight, bias = random(96, 64, dtype=dtype), random(96, dtype=dtype, seed=1) if with_bias else None
    rows = random(1, 24, 64, dtype=dtype, seed=2)
    got, expected = PackedLinear(weight, bias)(rows), linear(rows, weight, bias)
    if dtype is torch.bfloat16:
        assert torch.equal(got, expected)
    else:
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
@pytest.mark.parametrize(("num_out", "num_in"), [(192, 576), (576, 1536), (48, 64), (2048, 2048)])
def test_rows_have_the_same_bits_for_every_row_count_that_the_rule_allows(
    dtype: torch.dtype, kind: type[nn.Module], num_out: int, num_in: int
) -> None:
    if kind is PackedLinear and not packing_works(dtype):
        pytest.skip("this torch or CPU has no packed operators")
    layer = kind(random(num_out, num_in, dtype=dtype), None)
    rows = random(MAX_ROWS, num_in, dtype=dtype, seed=1)
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        rule = row_rule(layer, num_in, dtype, rows.device)
        assert RowRule(rule.min_rows, rule.step) in ROW_RULES
        expected = layer(rows)
        for num_rows in filter(rule.allows, range(1, MAX_ROWS)):
            assert torch.equal(layer(rows[:num_rows]), expected[:num_rows]), (num_threads, num_rows)


@pytest.mark.parametrize(
    ("odd_counts", "rule"),
    [(set(), RowRule(4, 4)), ({1, 2, 3, 5, 6, 7, 9, 10}, RowRule(4, 4)), ({4, 12}, RowRule(8, 8))],
)
def test_a_row_rule_avoids_the_counts_at_which_a_kernel_computes_otherwise(odd_counts: set[int], rule: RowRule) -> None:
    class Odd(BlockedLinear):
        def product(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 1e-6 * (len(x) in odd_counts))

    assert row_rule(Odd(), 16, torch.float32, torch.device("cpu")) == rule
    assert [rule.round_up(n) for n in (1, 4, 5, 8)] == [
        max(rule.min_rows, -(-n // rule.step) * rule.step) for n in (1, 4, 5, 8)
    ]


@pytest.mark.parametrize(("smallest_odd", "max_rows"), [(33, 32), (17, 16), (9, 8), (1000, UNLIMITED)])
def test_a_layer_whose_large_products_differ_computes_its_rows_in_blocks(smallest_odd: int, max_rows: int) -> None:
    class Odd(BlockedLinear):
        def product(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 1e-6 * (len(x) >= smallest_odd))

    layer = Odd()
    rule = row_rule(layer, 16, torch.float32, torch.device("cpu"))
    assert rule == RowRule(4, 4, max_rows)
    assert layer.max_rows == max_rows
    rows = random(256, 16, dtype=torch.float32)
    for num_rows in filter(rule.allows, range(1, 257)):
        assert torch.equal(layer(rows[:num_rows]), rows[:num_rows])


def test_rows_that_depend_on_their_index_are_logged() -> None:
    class Placed(BlockedLinear):
        def product(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 1e-6 * (torch.arange(len(x))[:, None] % 2))

    with capture_logs() as logs:
        row_rule(Placed(), 16, torch.float32, torch.device("cpu"))
    assert [(each["event"], each["rows"]) for each in logs] == [
        ("a row's bits depend on the row count", [4, 8, 16, 32, 36, 64])
    ]


def test_all_layers_get_the_lowest_row_limit() -> None:
    layers = nn.ModuleList([PlainLinear(torch.eye(4), None) for _ in range(3)])
    layers[1].max_rows = 8
    limit_rows((layers,), 16)
    assert [layer.max_rows for layer in layers] == [16, 8, 16]
    assert strictest((RowRule(4, 2, 16), RowRule(8, 8), RowRule(4, 4, 32))) == RowRule(8, 8, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
def test_rows_in_blocks_are_those_of_the_whole(dtype: torch.dtype, kind: type[BlockedLinear]) -> None:
    if kind is PackedLinear and not packing_works(dtype):
        pytest.skip("this torch or CPU has no packed operators")
    layer = kind(random(48, 64, dtype=dtype), random(48, dtype=dtype, seed=1))
    x = random(1, 40, 64, dtype=dtype, seed=2)
    expected = torch.cat([layer(x[:, :16]), layer(x[:, 16:32]), layer(x[:, 32:])], dim=1)
    layer.max_rows = 16
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_are_float32_and_have_the_same_bits_for_every_row_count(dtype: torch.dtype) -> None:
    weight, bias = random(500, 96, dtype=dtype), random(500, dtype=dtype, seed=1)
    head = Float32Head(weight, bias, packed=packing_works(dtype))
    hidden = random(1, MAX_ROWS, 96, dtype=dtype, seed=2)
    expected = head(hidden)
    assert expected.dtype is torch.float32
    assert torch.allclose(expected, linear(hidden.float(), weight.float(), bias.float()), rtol=1e-5, atol=1e-4)
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for num_rows in range(MAX_ROWS):
            assert torch.equal(head(hidden[:, :num_rows]), expected[:, :num_rows]), (num_threads, num_rows)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh")], ids=str)
def test_an_activation_in_blocks_does_not_depend_on_rows_or_threads(activation: nn.Module) -> None:
    blocked = RowwiseActivation(activation)
    x = random(1, 128, 1040, dtype=torch.float32) * 3
    torch.set_num_threads(1)
    expected = blocked(x)
    assert torch.equal(expected, activation(x))
    for num_threads in (1, 2, 3, 5):
        torch.set_num_threads(num_threads)
        for num_rows in (1, 2, 3, 5, 7, *range(8, 128, 8)):
            assert torch.equal(blocked(x[:, :num_rows]), expected[:, :num_rows]), (num_threads, num_rows)


def test_replaced_layers_are_freed() -> None:
    if not packing_works(torch.float32):
        pytest.skip("this torch or CPU has no packed operators")
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    matrices = [weakref.ref(weight) for weight in model.parameters() if weight.dim() == 2]
    TransformersNetwork(model, packed=True)
    gc.collect()
    assert len(matrices) == 2 + 2 * 7
    assert [matrix().shape for matrix in matrices if matrix() is not None] == [(99, 32)], "only the embedding stays"


def test_layers_of_one_shape_are_probed_once_and_the_strictest_rule_holds_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {16: RowRule(4, 2, 32), 8: RowRule(4, 4)}
    asked: list[int] = []

    def probed(layer: PlainLinear, num_in: int, dtype: torch.dtype, device: torch.device) -> RowRule:
        asked.append(num_in)
        return found[num_in]

    monkeypatch.setattr(packed, "row_rule", probed)
    rules = RowRules()
    for shape in ((8, 16), (8, 16), (16, 8), (8, 16)):
        weight = torch.zeros(shape)
        rules.probe(PlainLinear(weight, None), weight)
    assert asked == [16, 8]
    assert rules.strictest == RowRule(4, 4, 32)


def test_a_row_rule_rounds_row_counts_up() -> None:
    assert [RowRule(4, 2).round_up(n) for n in (1, 4, 5, 17, 33, 65, 200, 256)] == [4, 4, 6, 18, 36, 72, 208, 256]
    assert [RowRule(4, 4).round_up(n) for n in (1, 4, 5)] == [4, 4, 8]
    assert all(n <= RowRule(4, 2).round_up(n) <= max(4, n * 9 / 8 + 1) for n in range(1, 1000))


def test_packing_is_off_where_the_private_operators_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(nn.Module):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(packed, "PackedLinear", Missing)
    assert not packing_works(torch.float32)


@pytest.mark.parametrize(("product", "remainder"), [(1.0, 1.0), (1.5, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packing_is_off_where_the_private_operators_compute_something_else(
    product: float, remainder: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(PlainLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * product

        def remainder(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            exact = linear(x.float(), self._weight.float())
            return ((exact - y.float()) * remainder).to(x.dtype)

    monkeypatch.setattr(packed, "PackedLinear", Scaled)
    is_right = product == 1 and (remainder == 1 or dtype is torch.float32)
    assert packing_works(dtype) == is_right
