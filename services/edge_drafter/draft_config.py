"""The configuration beside a draft's ONNX graph: vocabulary size, context length and names of tensors.

Invariant: tensors are found by name, never by order. Keys and values have equal shapes, so a mix-up would go unnoticed.

Two formats: genai_config.json of onnxruntime-genai's model builder, and draft_config.json, which `python -m model_zoo
export` writes for architectures that the builder does not know. Beside either, draft_vocabulary.json may list the
token ids that the graph has logits for, where these are not all.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

GENAI_CONFIG, EXPORTED_CONFIG, VOCABULARY = "genai_config.json", "draft_config.json", "draft_vocabulary.json"


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What both formats hold."""

    file: str  # the ONNX file, beside the configuration
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    ids: str
    logits: str
    kv: tuple[tuple[str, str], ...]  # (past input, output) of the keys and of the values, layer by layer
    token_ids: tuple[int, ...] | None = None  # of the graph's logits, ascending; None: the whole vocabulary

    @property
    def num_logits(self) -> int:
        """Of the graph, for each token."""
        return self.vocab_size if self.token_ids is None else len(self.token_ids)


class GenaiConfig(DraftConfig, frozen=True, kw_only=True):
    """A graph in which a layer's present keys and values share the memory of the past ones."""

    num_kv_heads: int
    head_size: int
    mask: str


class ExportedConfig(DraftConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph that takes past keys and values and returns only the new ones, each [tokens, kv_heads, head_dim]."""


def read_config(folder: Path) -> GenaiConfig | ExportedConfig:
    """The configuration of the draft in `folder`.

    Raises FileNotFoundError if it or its graph is missing, ValueError if it is malformed.
    """
    if (folder / EXPORTED_CONFIG).is_file():
        config: GenaiConfig | ExportedConfig = _read_exported(folder / EXPORTED_CONFIG)
    elif (folder / GENAI_CONFIG).is_file():
        config = _read_genai(folder / GENAI_CONFIG)
    else:
        raise FileNotFoundError(f"no draft model in {folder}: {GENAI_CONFIG} and {EXPORTED_CONFIG} are missing")
    if not (folder / config.file).is_file():
        raise FileNotFoundError(f"no draft model in {folder}: {config.file} is missing")
    if not (folder / VOCABULARY).is_file():
        return config
    return msgspec.structs.replace(config, token_ids=_read_vocabulary(folder / VOCABULARY, config.vocab_size))


def _read_vocabulary(path: Path, vocab_size: int) -> tuple[int, ...]:
    try:
        token_ids = msgspec.json.decode(path.read_bytes(), type=tuple[int, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a list of token ids: {error}") from error
    if not token_ids or token_ids[0] < 0 or token_ids[-1] >= vocab_size or list(token_ids) != sorted(set(token_ids)):
        raise ValueError(f"{path} must list token ids below {vocab_size} in ascending order, each once")
    return token_ids


def _read_exported(path: Path) -> ExportedConfig:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportedConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not the configuration of an exported draft: {error}") from error


def _read_genai(path: Path) -> GenaiConfig:
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        patterns = [(inputs[f"past_{kind}_names"], outputs[f"present_{kind}_names"]) for kind in ("key", "value")]
        layers = range(decoder["num_hidden_layers"])
        eos = model.get("eos_token_id", [])
        return GenaiConfig(
            file=decoder["filename"],
            vocab_size=model["vocab_size"],
            max_context=model["context_length"],
            num_kv_heads=decoder["num_key_value_heads"],
            head_size=decoder["head_size"],
            eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
            ids=inputs["input_ids"],
            mask=inputs["attention_mask"],
            logits=outputs["logits"],
            kv=tuple((past % layer, present % layer) for layer in layers for past, present in patterns),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a decoder with a KV cache: {error!r}") from error
