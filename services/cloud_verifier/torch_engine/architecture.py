"""Checks whether the verifier can serve an architecture: by its configuration, then by comparing logits.

Invariant: for an accepted model, mixed passes over chunks of texts give the logits of its plain forward pass over the
whole text. Any other model is refused with its name and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from services.cloud_verifier.torch_engine.attention import ATTENTION_NAME, LayoutRecorder, UnsupportedAttention
from services.cloud_verifier.torch_engine.kv import KvLayout

PROBE_LENGTHS = (24, 9)
_SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}
_REFUSED_ROPE_TYPES = {"dynamic", "longrope"}  # their angles depend on the longest position of the batch
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # ten times the rounding error


class UnsupportedModel(Exception):
    """The verifier can't serve this architecture."""

    def __init__(self, config: PretrainedConfig, reason: str) -> None:
        name = (config.architectures or [config.model_type])[0]
        super().__init__(f"architecture {name} can't be served: {reason}")


def read_config(folder_or_id: str) -> PretrainedConfig:
    """Raises UnsupportedModel if transformers does not know the architecture, OSError if there is no configuration."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder_or_id, trust_remote_code=False)
        return config
    except ValueError as error:
        content, _ = PretrainedConfig.get_config_dict(folder_or_id)
        if "model_type" not in content:
            raise FileNotFoundError(f"{folder_or_id} has no config.json that names a model_type") from error
        known = PretrainedConfig(architectures=content.get("architectures") or [content["model_type"]])
        raise UnsupportedModel(known, "transformers does not implement it") from error


def check_config(config: PretrainedConfig, device: torch.device) -> None:
    """Raises UnsupportedModel if the configuration rules the model out on this device."""
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise UnsupportedModel(config, "it is an encoder-decoder")
    unserved = sorted(set(getattr(text, "layer_types", None) or []) - _SERVED_LAYER_TYPES)
    if unserved:
        raise UnsupportedModel(config, f"it has layers of type {', '.join(unserved)}")
    if device.type == "cpu" and any(getattr(text, name, None) for name in _EXPERT_COUNTS):
        # An expert's batch size depends on the other sessions, and so would the last bits of the logits.
        raise UnsupportedModel(config, "on the CPU the text of a mixture of experts would depend on the batch")
    for rope_type in _rope_types(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)):
        if rope_type in _REFUSED_ROPE_TYPES:
            raise UnsupportedModel(config, f"its rotary embedding is of type {rope_type}")
    if not isinstance(getattr(text, "max_position_embeddings", None), int):
        raise UnsupportedModel(config, "its configuration has no max_position_embeddings")


def probe_texts(vocab_size: int) -> list[list[int]]:
    """Token ids [24] and [9], random but the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in PROBE_LENGTHS]


def find_layout(model: PreTrainedModel, token_ids: Sequence[int]) -> KvLayout:
    """Switches the model to our attention function and records the KV cache of each layer in one short pass."""
    config = model.config
    recorder = LayoutRecorder()
    try:
        model.set_attn_implementation(ATTENTION_NAME)
    except ValueError as error:
        raise UnsupportedModel(config, "it has no replaceable attention function") from error
    ids = torch.tensor([token_ids], device=model.device)
    try:
        model(ids, use_cache=False, dsd_attention=recorder)
    except UnsupportedAttention as error:
        raise UnsupportedModel(config, str(error)) from error
    num_layers = config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)):
        reason = f"only {len(recorder.layers)} of its {num_layers} layers use the replaceable attention function"
        raise UnsupportedModel(config, reason)
    layers = tuple(recorder.layers[index] for index in range(num_layers))
    for index, layer in enumerate(layers):
        if layer.sliding_window != _window_of(config, index):
            raise UnsupportedModel(config, f"layer {index} does not pass its sliding window to its attention")
    return KvLayout(layers, model.dtype, model.device, is_tiled=model.device.type == "cpu")


def check_logits(
    config: PretrainedConfig, got: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Raises UnsupportedModel if `got`, from mixed passes, differs from `expected`; each [tokens, vocab] per text."""
    for ours, plain in zip(got, expected, strict=True):
        # Softmax ignores the mean of a row.
        ours, plain = (x.float() - x.float().mean(dim=-1, keepdim=True) for x in (ours, plain))
        error = ((ours - plain).norm() / plain.norm().clamp_min(1e-6)).item()
        if not error <= _TOLERANCES[dtype]:
            raise UnsupportedModel(config, f"in mixed passes its logits are off by {error:.1%} of their size")


def _window_of(config: PretrainedConfig, index: int) -> int | None:
    text = config.get_text_config()
    layer_types = getattr(text, "layer_types", None)
    is_sliding = layer_types is None or layer_types[index] == "sliding_attention"
    return getattr(text, "sliding_window", None) if is_sliding else None


def _rope_types(parameters: Any) -> Iterator[str]:
    """The configuration is one dict, or one per layer type."""
    if isinstance(parameters, dict):
        yield str(parameters.get("rope_type", parameters.get("type", "default")))
        for nested in parameters.values():
            if isinstance(nested, dict):
                yield from _rope_types(nested)
