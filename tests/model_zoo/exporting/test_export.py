"""Exporting a user's own model: which exporter, what lies in the folder, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM
from transformers.models.bloom import BloomConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.qwen3 import Qwen3Config
from transformers.models.t5 import T5Config
from transformers.models.vit import ViTConfig

from model_zoo import source
from model_zoo.errors import ExportError, UnusableModel
from model_zoo.exporting import export
from model_zoo.exporting.export import ExportRecord, export_model
from model_zoo.exporting.onnx_export import Exporter, Precision, builder_architectures
from model_zoo.exporting.torch_export import max_context
from model_zoo.manifest import sha256_of
from model_zoo.measuring.agreement import Disagreement, check_agreement, reference_of
from services.edge_drafter.model import DraftCache, DraftModel, load_draft
from tests.gateway.tiny import SPECIAL, TEMPLATE, make_folder
from tests.verifier.torch_engine.tiny_models import save_model

ROOT = Path(__file__).parents[3]
VOCAB_SIZE = 384  # more than the tiny tokenizer has tokens
SHAPE = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt_neox": GPTNeoXConfig(**SHAPE, **IDS, intermediate_size=128, max_position_embeddings=256),
    "gpt2": GPT2Config(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, n_positions=256, **IDS),
    "qwen3": Qwen3Config(
        **SHAPE, **IDS, num_key_value_heads=2, head_dim=32, intermediate_size=96, max_position_embeddings=256
    ),
    "bloom": BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=64, n_layer=2, n_head=4, **IDS),
}


def quiet(line: str) -> None:
    pass


def make_model(folder: Path, family: str) -> Path:
    """What a user has: weights, configuration, tokenizer, template, end tokens."""
    make_folder(save_model(FAMILIES[family], folder))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_model(root / family, family) for family in FAMILIES}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("family", "precision", "exporter", "config_file"),
    [
        ("gpt2", "int4", "torch", "draft_config.json"),
        ("qwen3", "int8", "builder", "genai_config.json"),
        ("gpt_neox", "fp32", "torch", "draft_config.json"),
    ],
)
def test_a_model_is_exported_by_who_knows_it_with_all_that_its_users_need(
    models: dict[str, Path], tmp_path: Path, family: str, precision: Precision, exporter: str, config_file: str
) -> None:
    out = tmp_path / "deep" / "draft"
    record = export_model(str(models[family]), out, precision, Exporter.AUTO, quiet)
    assert record.exporter == exporter
    assert record.agreement > {"fp32": 0.999, "int8": 0.8, "int4": 0.5}[precision]
    assert left_in(out.parent) == ["draft"]
    assert config_file in record.files
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} < record.files.keys()
    assert (out / "tokenizer.json").read_bytes() == (models[family] / "tokenizer.json").read_bytes()
    assert msgspec.json.decode((out / "export.json").read_bytes(), type=ExportRecord) == record
    assert set(left_in(out)) == {*record.files, "export.json"}
    assert all(sha256_of(out / name) == entry.sha256 for name, entry in record.files.items())
    assert record.sources["model.safetensors"] == sha256_of(models[family] / "model.safetensors")
    assert (load_draft(str(out), 1).vocab_size, load_draft(str(out), 1).max_context) == (VOCAB_SIZE, 256)


@dataclass(frozen=True)
class Exported:
    """What the command line made of the GPT-NeoX model, and said."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def exported(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported") / "draft"
    flags = ["--model", "gpt_neox", "--quantize", "int8", "--out", str(folder)]
    done = command("export", *flags, cwd=models["gpt_neox"].parent)
    assert done.returncode == 0, done.stderr
    return Exported(folder, done.stderr)


def test_the_command_line_says_how_the_draft_follows_its_source(exported: Exported) -> None:
    last = exported.said.strip().splitlines()[-1]
    assert last.startswith(f"{exported.folder} is a draft of gpt_neox (GPTNeoXForCausalLM, int8, ")
    share = re.search(r"at (\d+)% of the positions of sampled texts its top token is its source's$", last)
    assert share is not None
    assert int(share[1]) > 80
    assert json.loads((exported.folder / "export.json").read_text())["exporter"] == "torch"


def test_a_folder_that_exists_is_left_alone(exported: Exported, models: dict[str, Path]) -> None:
    before = left_in(exported.folder)
    with pytest.raises(ExportError, match="draft exists already: choose another folder or remove it"):
        export_model(str(models["gpt_neox"]), exported.folder, "int8", Exporter.AUTO, quiet)
    assert left_in(exported.folder) == before


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "model_zoo", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_builder_says_itself_which_architectures_it_knows() -> None:
    known = builder_architectures()
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"} < known
    assert not {"GPTNeoXForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"} & known


def test_an_architecture_that_no_exporter_can_write_is_named_and_nothing_is_left(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=r"bloom \(BloomForCausalLM\) can't be exported: torch's exporter stops with "
    ):
        export_model(str(models["bloom"]), tmp_path / "draft", "int8", Exporter.AUTO, quiet)
    assert left_in(tmp_path) == []


def test_the_builder_is_not_asked_for_what_it_does_not_know(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="model builder does not know GPTNeoXForCausalLM"):
        export_model(str(models["gpt_neox"]), tmp_path / "draft", "int8", Exporter.BUILDER, quiet)


def test_an_export_that_computes_something_else_is_refused_and_nothing_is_left(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with another model of the same shape."""
    monkeypatch.setattr(export, "_load", lambda source: other_model("qwen3"))
    with pytest.raises(
        ExportError, match=r"int8 export of .*qwen3 is refused: .* the correlation of their logits must be"
    ):
        export_model(str(models["qwen3"]), tmp_path / "draft", "int8", Exporter.AUTO, quiet)
    assert left_in(tmp_path) == []


def other_model(family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(FAMILIES[family]).eval()


class Forgetful(DraftModel):
    """A draft whose logits depend on what was fed and rolled back."""

    def __init__(self, honest: DraftModel) -> None:
        self.__dict__.update(honest.__dict__)
        self._longest: dict[int, int] = {}

    def feed(self, cache: DraftCache, token_ids: list[int], start: int) -> np.ndarray:
        self._longest[id(cache)] = max(self._longest.get(id(cache), 0), start + len(token_ids))
        return super().feed(cache, token_ids, start) + 1e-3 * (self._longest[id(cache)] > start + len(token_ids))


def test_a_draft_that_remembers_what_was_rolled_back_is_refused(models: dict[str, Path], exported: Exported) -> None:
    reference = reference_of(AutoModelForCausalLM.from_pretrained(models["gpt_neox"]), 256)
    draft = load_draft(str(exported.folder), 1)
    assert check_agreement(draft, reference, "int8").share > 0.5
    with pytest.raises(Disagreement, match="depends on tokens that were rolled back"):
        check_agreement(Forgetful(draft), reference, "int8")


def test_texts_are_no_longer_than_a_sliding_window_that_the_graph_does_not_have() -> None:
    shape = {**SHAPE, "max_position_embeddings": 256}
    assert max_context(Qwen3Config(**shape)) == 256
    assert max_context(Qwen3Config(**shape, use_sliding_window=True, sliding_window=64, max_window_layers=1)) == 64


# --- what is no model to export ---------------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableModel, match=r"holds no Hugging Face model: it has no config\.json"):
        source.open_source(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UnusableModel, match=r"config\.json holds no JSON object"):
        source.open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(vocab_size=64, d_model=32, d_ff=32, num_layers=1, num_heads=2), r"an encoder-decoder \(t5\)"),
        (ViTConfig(hidden_size=32, num_hidden_layers=1), r"not a causal language model \(vit\)"),
        (PretrainedConfig(), "has no config.json with a model_type"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(tmp_path: Path, config: PretrainedConfig, reason: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnusableModel, match=reason):
        source.open_source(str(tmp_path))


def test_an_architecture_that_transformers_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(UnusableModel, match="transformers does not implement unheard_of"):
        source.open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", r"holds no weights: there are no \*\.safetensors"),
        ("tokenizer.json", r"tokenizer\.json is missing"),
    ],
)
def test_a_missing_file_is_named(models: dict[str, Path], tmp_path: Path, name: str, reason: str) -> None:
    folder = shutil.copytree(models["gpt2"], tmp_path / "gpt2")
    (folder / name).unlink()
    with pytest.raises(UnusableModel, match=reason):
        source.open_source(str(folder))


def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "snapshot_download", lambda *arguments, **options: pytest.fail("asked the hub"))
    for name in ("./model", "/no/such/model", "model", "a/b/c"):
        with pytest.raises(UnusableModel, match="there is no folder"):
            source.open_source(name)


def test_a_hub_id_is_fetched_without_code(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(models["gpt2"])

    monkeypatch.setattr(source, "snapshot_download", fetch)
    assert source.open_source("somebody/gpt2").architecture == "GPT2LMHeadModel"
    assert asked == [("somebody/gpt2", ["*.json", "*.jinja", "*.safetensors"])]


def test_a_hub_that_does_not_answer_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, allow_patterns: list[str]) -> str:
        raise FileNotFoundError("cannot find the requested files\nand much more")

    monkeypatch.setattr(source, "snapshot_download", fail)
    with pytest.raises(UnusableModel, match=r"of this id: cannot find the requested files$"):
        source.open_source("somebody/gpt2")
