"""A user's Hugging Face model: its files, and whether it can be exported as a draft.

Invariant: only files of the model are read; none of its code is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_zoo.errors import UnusableModel
from model_zoo.manifest import sha256_of

TEXT_FILES = ("*.json", "*.jinja")
ALL_FILES = (*TEXT_FILES, "*.safetensors")


@dataclass(frozen=True)
class Source:
    """A causal language model on disk."""

    named: str  # as the user named it
    folder: Path
    config: PretrainedConfig

    @property
    def architecture(self) -> str:
        return (self.config.architectures or [self.config.model_type])[0]


def locate(model: str, files: Sequence[str]) -> Path:
    """The folder itself, or the cached copy of a hub id. files: patterns of the files to download."""
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UnusableModel(f"there is no folder {model}")
    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UnusableModel(f"there is no folder {model}, and the hub has no model of this id: {reason}") from error


def open_source(model: str) -> Source:
    """The causal language model of a folder or hub id. Raises UnusableModel."""
    folder = locate(model, ALL_FILES)
    facts = read_json(folder / "config.json")
    if "model_type" not in facts:
        raise UnusableModel(f"{folder} holds no Hugging Face model: it has no config.json with a model_type")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        raise UnusableModel(f"{model}: transformers does not implement {facts['model_type']}") from error
    if config.is_encoder_decoder:
        raise UnusableModel(
            f"{model} is an encoder-decoder ({config.model_type}): a draft must be a causal language model"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnusableModel(f"{model} is not a causal language model ({config.model_type})")
    if not list(folder.glob("*.safetensors")):
        raise UnusableModel(f"{folder} holds no weights: there are no *.safetensors")
    if not (folder / "tokenizer.json").is_file():
        raise UnusableModel(f"{folder / 'tokenizer.json'} is missing: the draft's vocabulary can't be checked")
    return Source(model, folder, config)


def weights_sha256(folder: Path) -> str:
    """Of all files of weights, in the order of their names."""
    return hashlib.sha256("".join(map(sha256_of, sorted(folder.glob("*.safetensors")))).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing. Raises UnusableModel for other content."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnusableModel(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnusableModel(f"{path} holds no JSON object")
    return content
