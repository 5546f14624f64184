"""A rotated model computes what its source does, without the large channels that spoil quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from model_zoo.rotation import can_rotate, rotate, rotation_of


def a_llama(folder: Path, **changes: Any) -> Path:
    """Tiny and random, with norms of many scales and one channel that is much larger than the others."""
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    model = LlamaForCausalLM(LlamaConfig(**(shape | heads | {"tie_word_embeddings": True} | changes)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.rand_like(weight) * 2 + 0.1)
        model.model.embed_tokens.weight[:, 7] *= 30
    model.save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"head_dim": 32}, {"num_key_value_heads": 6}])
def test_a_rotated_model_has_its_sources_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = a_llama(tmp_path / "source", **changes)
    rotate(source, tmp_path / "rotated")
    expected, found = logits(source), logits(tmp_path / "rotated")
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.std()))


def test_the_large_channel_is_spread_over_all(tmp_path: Path) -> None:
    def largest(folder: Path) -> float:
        """The largest channel of the embeddings, in root mean squares of all."""
        weight = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model.embed_tokens.weight.detach()
        return float(weight.square().mean(0).sqrt().max() / weight.square().mean().sqrt())

    source = a_llama(tmp_path / "source")
    rotate(source, tmp_path / "rotated")
    assert largest(source) > 5
    assert largest(tmp_path / "rotated") < 2


@pytest.mark.parametrize("size", [1, 2, 9, 64, 96, 576])
def test_a_rotation_is_orthogonal_and_always_the_same(size: int) -> None:
    found = rotation_of(size)
    assert torch.allclose(found @ found.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(found, rotation_of(size))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"attention_bias": True}, False), ({"mlp_bias": True}, False), ({"model_type": "qwen2"}, False)],
)
def test_only_plain_llamas_are_rotated(tmp_path: Path, changes: dict[str, Any], expected: bool) -> None:
    config = json.loads((a_llama(tmp_path / "source") / "config.json").read_text())
    assert can_rotate(config | changes) is expected
