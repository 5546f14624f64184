"""A rotated model computes what its source does, without the large channels that spoil quantisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_zoo.errors import ExportError
from model_zoo.exporting import onnx_export
from model_zoo.exporting.onnx_export import export_draft
from model_zoo.exporting.rotation import can_rotate, rotate, rotation_of
from services.edge_drafter.model import load_draft


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


def test_what_is_tied_and_what_lies_in_parts_is_read_as_the_configuration_says(tmp_path: Path) -> None:
    source = a_llama(tmp_path / "source")
    whole = load_file(source / "model.safetensors")
    stale = torch.randn_like(whole["model.embed_tokens.weight"])  # a head that a tied model does not use
    half = sorted(whole)[: len(whole) // 2]
    parts = {"a.safetensors": {name: whole[name] for name in half}}
    parts["b.safetensors"] = {name: weight for name, weight in whole.items() if name not in half}
    for name, part in parts.items():
        save_file(part, source / name, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({**whole, "lm_head.weight": stale}, source / "model.safetensors", metadata={"format": "pt"})
    expected = logits(a_llama(tmp_path / "again"))
    rotate(source, tmp_path / "rotated")
    assert torch.allclose(logits(tmp_path / "rotated"), expected, atol=1e-4 * float(expected.std()))


def test_an_int8_draft_of_a_llama_is_rotated_and_follows_its_source_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = a_llama(tmp_path / "source", hidden_size=128, head_dim=32, num_attention_heads=4, intermediate_size=256)
    words = Tokenizer(WordLevel({str(number): number for number in range(300)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(source)  # the builder asks for one
    ids = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()

    def deviation(name: str) -> float:
        export_draft(source, tmp_path / name, "int8")
        draft = load_draft(str(tmp_path / name), num_threads=1)
        found = draft.feed(draft.new_cache(40), ids, 0)
        return float(np.abs(found - expected).mean() / expected.std())

    rotated = deviation("rotated")
    monkeypatch.setattr(onnx_export, "_easier", lambda source_folder, scratch: source_folder)
    assert rotated < 0.7 * deviation("plain")


def test_a_llama_without_a_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    source = a_llama(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ExportError, match=r"not those of a complete Llama model: 'model\.layers\.1\.mlp\.up_proj\.weight'"
    ):
        export_draft(source, tmp_path / "draft", "int8")


@pytest.mark.parametrize("size", [1, 2, 9, 64, 96, 576])
def test_a_rotation_is_orthogonal_and_always_the_same(size: int) -> None:
    found = rotation_of(size)
    assert torch.allclose(found @ found.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(found, rotation_of(size))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"attention_bias": True}, False),
        ({"mlp_bias": True}, False),
        ({"model_type": "qwen2"}, False),
        ({"quantization_config": {"quant_method": "awq"}}, False),
    ],
)
def test_only_plain_llamas_are_rotated(tmp_path: Path, changes: dict[str, Any], expected: bool) -> None:
    config = json.loads((a_llama(tmp_path / "source") / "config.json").read_text())
    assert can_rotate(config | changes) is expected
