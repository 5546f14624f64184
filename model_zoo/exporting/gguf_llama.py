"""Converts a GGUF file of a Llama model with tied embeddings to a Hugging Face folder: weights, config, tokenizer.

Invariant: the folder holds all that transformers, the gateway and the ONNX export need.

Weights are stored as bfloat16. The source is 4-bit (blocks of d * q + m with 16-bit d and m), and the model was trained
and published in bfloat16. With bfloat16 weights, float32 and bfloat16 runs compute with the same numbers, so one checks
the other. As float32 they would take twice the space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


class UnsupportedGguf(ValueError):
    """The file is not of the kind that this conversion supports."""


@dataclass(frozen=True)
class LlamaShape:
    """The hyperparameters in a GGUF header."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context: int
    rope_theta: float
    rms_norm_eps: float
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer and chat template to `folder`."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_file)
    shape = _read_shape(reader)
    tensors = dict(_tensors(reader, shape))
    _check_complete(tensors, shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "generation_config.json", _token_roles(shape))
    _write_tokenizer(reader, shape, folder)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UnsupportedGguf(f"the GGUF has no {key}")
    return field.contents()


def _read_shape(reader: GGUFReader) -> LlamaShape:
    for key, expected in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if (found := _value(reader, key)) != expected:
            raise UnsupportedGguf(f"{key} must be {expected!r}, got {found!r}")
    return LlamaShape(
        vocab_size=_value(reader, "llama.vocab_size"),
        hidden_size=_value(reader, "llama.embedding_length"),
        intermediate_size=_value(reader, "llama.feed_forward_length"),
        num_layers=_value(reader, "llama.block_count"),
        num_heads=_value(reader, "llama.attention.head_count"),
        num_kv_heads=_value(reader, "llama.attention.head_count_kv"),
        max_context=_value(reader, "llama.context_length"),
        rope_theta=_value(reader, "llama.rope.freq_base"),
        # the header holds the float32 nearest to a short decimal number
        rms_norm_eps=float(f"{_value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        bos_token_id=_value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_value(reader, "tokenizer.ggml.padding_token_id"),
    )


def _tensors(reader: GGUFReader, shape: LlamaShape) -> Iterator[tuple[str, Tensor]]:
    import torch
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)  # float32, [out, in] or [size]
        if tensor.name.endswith("attn_q.weight"):
            weight = _undo_rope_interleaving(weight, shape.num_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = _undo_rope_interleaving(weight, shape.num_kv_heads)
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


def _check_complete(tensors: dict[str, Tensor], shape: LlamaShape) -> None:
    expected = {f"{name}.weight" for name in _GLOBAL_TENSORS.values()}
    for layer in range(shape.num_layers):
        expected |= {f"model.layers.{layer}.{name}.weight" for name in _LAYER_TENSORS.values()}
    if missing := expected - tensors.keys():
        raise UnsupportedGguf(f"the GGUF lacks {len(missing)} tensors; the first is {min(missing)}")


def _token_roles(shape: LlamaShape) -> dict[str, int]:
    return {
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": shape.eos_token_id,
        "pad_token_id": shape.pad_token_id,
    }


def _config(shape: LlamaShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.hidden_size // shape.num_heads,
        "max_position_embeddings": shape.max_context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_token_roles(shape),
    }


def _write_tokenizer(reader: GGUFReader, shape: LlamaShape, folder: Path) -> None:
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
    _check_tokenizer(tokenizer, shape)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokens, shape))
    (folder / "chat_template.jinja").write_text(_value(reader, "tokenizer.chat_template"), encoding="utf-8")


def _check_tokenizer(tokenizer: Any, shape: LlamaShape) -> None:
    if (size := tokenizer.get_vocab_size()) != shape.vocab_size:
        raise UnsupportedGguf(f"the tokenizer has {size} tokens, the model {shape.vocab_size}")
    number = tokenizer.encode("0123456789").tokens
    if number != list("0123456789"):
        raise UnsupportedGguf(f"digits are not split one by one: 0123456789 became {number}")
    text = "It's 3.14 → naïve 東京 🙂\n\tdone"
    if (back := tokenizer.decode(tokenizer.encode(text).ids)) != text:
        raise UnsupportedGguf(f"the tokenizer turned {text!r} into {back!r}")


def _tokenizer_config(tokens: list[str], shape: LlamaShape) -> dict[str, Any]:
    return {
        # this class uses tokenizer.json unchanged; others rebuild the pre-tokenizer and lose the digits
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[shape.bos_token_id],
        "eos_token": tokens[shape.eos_token_id],
        "pad_token": tokens[shape.pad_token_id],
        "model_max_length": shape.max_context,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
