"""The ONNX export of a second architecture, quantised, and its failures. The float32 export: tests/drafter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from model_zoo.exporting import onnx_export
from model_zoo.exporting.onnx_export import ExportError, Precision, export_draft
from services.edge_drafter.model import load_draft


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny_qwen3")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("precision", "least_correlation"), [("int8", 0.99), ("int4", 0.5)])
def test_a_quantised_export_of_another_architecture_follows_the_original(
    tiny_qwen3: Path, tmp_path: Path, precision: Precision, least_correlation: float
) -> None:
    export_draft(tiny_qwen3, tmp_path / "draft", precision)
    draft = load_draft(str(tmp_path / "draft"), num_threads=1)
    ids = np.random.default_rng(0).integers(0, 512, 60).tolist()
    with torch.no_grad():
        expected = Qwen3ForCausalLM.from_pretrained(tiny_qwen3)(torch.tensor([ids])).logits[0, -1].numpy()
    cache = draft.new_cache(60)
    draft.feed(cache, ids[:50], 0)
    logits = draft.feed(cache, ids[50:], 50)
    assert np.corrcoef(logits, expected)[0, 1] > least_correlation


def test_an_unknown_folder_is_refused_with_the_builders_own_words(tmp_path: Path) -> None:
    source = tmp_path / "nothing"
    source.mkdir()
    with pytest.raises(ExportError, match=r"could not export .*nothing as int4:\n(.|\n)*config"):
        export_draft(source, tmp_path / "draft", "int4")


def test_an_export_that_does_not_load_is_an_error(
    tiny_qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the builder accepts this pair of options and writes a graph that refers to weights it doesn't have
    options = ["algo_config=default", "matmul_mixed_precision=last_matmul:int8"]
    monkeypatch.setitem(onnx_export._OPTIONS, "int4", options)
    with pytest.raises(ExportError, match="does not load"):
        export_draft(tiny_qwen3, tmp_path / "draft", "int4")
