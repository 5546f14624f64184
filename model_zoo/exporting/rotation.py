"""A rotation of a Llama's hidden states, folded into its weights, which makes them easier to quantise.

A few channels of the hidden states are many times larger than the others, and whatever shares their scale is rounded
coarsely. RMSNorm without weights commutes with any rotation Q. So:

* the weights of each norm are folded into the layers after it;
* a layer that reads the hidden state is multiplied by Q on its input side, one that writes it on its output side;
* values are rotated likewise between the layers that write and read them.

The function stays the same, without the large channels. After QuaRot (Ashkboos and others, arXiv 2404.00456, sections 4
and A), only the rotations that add no work at run time.

Invariant: in exact arithmetic a rotated model's logits are its source's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers")
TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def can_rotate(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a plain Llama: no biases, not quantised, all sizes given."""
    is_plain = not any(config.get(name) for name in ("attention_bias", "mlp_bias", "quantization_config"))
    return config.get("model_type") == "llama" and is_plain and all(name in config for name in SIZES)


def rotate(source: Path, out: Path) -> None:
    """Writes the rotated model of the folder `source` to the new folder `out`, in float32 with an untied head.

    Raises KeyError for a missing tensor, OSError or SafetensorError for a missing or unreadable file.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights: Weights = {}
    for path in weight_files(source):
        weights |= load_file(path)
    rotated = rotated_weights(weights, config)
    out.mkdir()
    for path in source.iterdir():
        if path.suffix in TEXT_SUFFIXES and not path.name.endswith(".safetensors.index.json"):
            shutil.copyfile(path, out / path.name)
    changed = {name: value for name, value in config.items() if name != "torch_dtype"}
    changed |= {"tie_word_embeddings": False, "dtype": "float32"}
    (out / "config.json").write_text(json.dumps(changed, indent=2), encoding="utf-8")
    save_file(rotated, out / "model.safetensors", metadata={"format": "pt"})


def weight_files(folder: Path) -> list[Path]:
    """The weight files that the index names, or the single file if there is no index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def rotated_weights(weights: Weights, config: dict[str, Any]) -> Weights:
    """The rotated weights of a Llama, [out, in] each: computed in float64, returned in float32."""
    hidden, num_heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // num_heads
    q, r = rotation_of(hidden), rotation_of(head_dim)
    head = weights[EMBEDDING if config.get("tie_word_embeddings", False) else HEAD].double()
    scale = weights[LAST_NORM].double()
    made = {HEAD: head * scale @ q, EMBEDDING: weights[EMBEDDING].double() @ q, LAST_NORM: torch.ones_like(scale)}
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        layer = {name: weight.double() for name, weight in weights.items() if name.startswith(prefix)}
        _rotate_layer(layer, prefix, q, r)
        made |= {name: weight.float().contiguous() for name, weight in layer.items()}
    return {name: weight.float().contiguous() for name, weight in made.items()}


def _rotate_layer(weights: Weights, prefix: str, q: torch.Tensor, r: torch.Tensor) -> None:
    """Rotates the weights of one layer in place."""
    for norm, readers in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        scale = weights[f"{prefix}{norm}.weight"]
        for reader in readers:
            weights[f"{prefix}{reader}.weight"] = weights[f"{prefix}{reader}.weight"] * scale @ q
        weights[f"{prefix}{norm}.weight"] = torch.ones_like(scale)
    for writer in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"{prefix}{writer}.weight"] = q.T @ weights[f"{prefix}{writer}.weight"]
    values, outputs = f"{prefix}self_attn.v_proj.weight", f"{prefix}self_attn.o_proj.weight"
    head_dim = len(r)
    by_head = weights[values].reshape(-1, head_dim, weights[values].shape[1])  # [kv_heads, head_dim, hidden]
    weights[values] = (r.T @ by_head).reshape(weights[values].shape)
    read = weights[outputs].reshape(len(weights[outputs]), -1, head_dim)  # [hidden, heads, head_dim]
    weights[outputs] = (read @ r).reshape(weights[outputs].shape)


def rotation_of(size: int, seed: int = 0) -> torch.Tensor:
    """An orthogonal matrix [size, size] that spreads each channel over all others.

    Random signs, then the Kronecker product of a Hadamard matrix (the power of two in `size`) and a cosine transform
    (the rest).
    """
    power = size & -size
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)], 0)
    rest = size // power
    k = torch.arange(rest, dtype=torch.float64)
    cosines = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / rest) * (2 / rest) ** 0.5
    cosines[0] /= 2**0.5
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return signs[:, None] * torch.kron(hadamard / power**0.5, cosines)
