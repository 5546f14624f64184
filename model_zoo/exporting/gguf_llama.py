"""Converts a GGUF file of a Llama model with tied embeddings to a Hugging Face folder: weights, config, tokenizer.

Invariant: the folder holds all that transformers, the gateway and the ONNX export need.

Weights are stored as bfloat16. The source is 4-bit (blocks of d * q + m with 16-bit d and m), and the model was trained
and published in bfloat16. With bfloat16 weights, float32 and bfloat16 runs compute with the same numbers, so one checks
the other. As float32 they would take twice the space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from torch import Tensor

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Standardized tensor names"
_GLOBAL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# config.json key: GGUF key
_SIZES = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
}
_TOKEN_ROLES = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_KIND = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


class UnsupportedGguf(ValueError):
    """The file is not of the kind that this conversion supports."""


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer and chat template to `folder`."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_file)
    config = _read_config(reader)
    tensors = dict(_tensors(reader, config))
    _check_complete(tensors, config["num_hidden_layers"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_all_but_weights(reader, config, folder)


def convert_all_but_weights(gguf_file: Path, folder: Path) -> None:
    """Writes what a gateway reads: the same files without model.safetensors. It needs no torch."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    _write_all_but_weights(reader, _read_config(reader), folder)


def _write_all_but_weights(reader: GGUFReader, config: dict[str, Any], folder: Path) -> None:
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {role: config[role] for role in _TOKEN_ROLES})
    _write_tokenizer(reader, config, folder)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UnsupportedGguf(f"the GGUF has no {key}")
    return field.contents()


def _values(reader: GGUFReader, keys: dict[str, str]) -> dict[str, Any]:
    return {name: _value(reader, key) for name, key in keys.items()}


def _read_config(reader: GGUFReader) -> dict[str, Any]:
    """The content of config.json."""
    for key, expected in _KIND.items():
        if (found := _value(reader, key)) != expected:
            raise UnsupportedGguf(f"{key} must be {expected!r}, got {found!r}")
    sizes = _values(reader, _SIZES)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        **sizes,
        "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "max_position_embeddings": _value(reader, "llama.context_length"),
        "rope_theta": _value(reader, "llama.rope.freq_base"),
        # the header holds the float32 nearest to a short decimal number
        "rms_norm_eps": float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_values(reader, _TOKEN_ROLES),
    }


def _tensors(reader: GGUFReader, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    import torch
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)  # float32, [out, in] or [size]
        if tensor.name.endswith("attn_q.weight"):
            weight = _undo_rope_interleaving(weight, config["num_attention_heads"])
        elif tensor.name.endswith("attn_k.weight"):
            weight = _undo_rope_interleaving(weight, config["num_key_value_heads"])
        yield _hugging_face_name(tensor.name), torch.from_numpy(weight.copy()).to(torch.bfloat16)


def _undo_rope_interleaving(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders rows from neighbouring pairs (rotary embedding of llama.cpp) to halves of a head (transformers)."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)  # [heads, pair, member, in]
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str) -> str:
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _LAYER_TENSORS:
            return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.weight"
        case [part, "weight"] if part in _GLOBAL_TENSORS:
            return f"{_GLOBAL_TENSORS[part]}.weight"
    raise UnsupportedGguf(f"tensor {name} is not part of a Llama model with tied embeddings")


def _check_complete(tensors: dict[str, Tensor], num_layers: int) -> None:
    expected = {f"{name}.weight" for name in _GLOBAL_TENSORS.values()}
    for layer in range(num_layers):
        expected |= {f"model.layers.{layer}.{name}.weight" for name in _LAYER_TENSORS.values()}
    if missing := expected - tensors.keys():
        raise UnsupportedGguf(f"the GGUF lacks {len(missing)} tensors; the first is {min(missing)}")


def _write_tokenizer(reader: GGUFReader, config: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    types = _value(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # "smollm" in a GGUF stands for this sequence: each digit alone, then GPT-2's byte-level words
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    _check_tokenizer(tokenizer, config["vocab_size"])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokens, config))
    (folder / "chat_template.jinja").write_text(_value(reader, "tokenizer.chat_template"), encoding="utf-8")


def _check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise UnsupportedGguf(f"the tokenizer has {size} tokens, the model {vocab_size}")
    number = tokenizer.encode("0123456789").tokens
    if number != list("0123456789"):
        raise UnsupportedGguf(f"digits are not split one by one: 0123456789 became {number}")
    text = "It's 3.14 → naïve 東京 🙂\n\tdone"
    if (back := tokenizer.decode(tokenizer.encode(text).ids)) != text:
        raise UnsupportedGguf(f"the tokenizer turned {text!r} into {back!r}")


def _tokenizer_config(tokens: list[str], config: dict[str, Any]) -> dict[str, Any]:
    return {
        # this class uses tokenizer.json unchanged; others rebuild the pre-tokenizer and lose the digits
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "model_max_length": config["max_position_embeddings"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
