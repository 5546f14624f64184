"""Which architectures the verifier can serve: checked by name where it is known, and by comparison in every case.

Invariant: a model that passes computes, cut into chunks and mixed with other sessions, what its own plain forward pass
computes over the whole text; any other is refused with its name and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from services.cloud_verifier.torch_engine.attention import ATTENTION_NAME, AttentionRefused, LayoutRecorder
from services.cloud_verifier.torch_engine.kv import KvLayout

PROBE_LENGTHS = (24, 9)
_SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}
_REFUSED_ROPE_TYPES = {"dynamic", "longrope"}  # their angles depend on the longest position of the batch
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # ten times what rounding does


class UnsupportedModel(Exception):
    """The verifier can't serve this architecture."""

    def __init__(self, config: PretrainedConfig, reason: str) -> None:
        name = (config.architectures or [config.model_type])[0]
        super().__init__(f"architecture {name} can't be served: {reason}")


def read_config(folder_or_id: str) -> PretrainedConfig:
    """The model's configuration; refuses one that transformers does not know. Raises OSError where there is none."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder_or_id, trust_remote_code=False)
        return config
    except ValueError as error:
        facts, _ = PretrainedConfig.get_config_dict(folder_or_id)
        if "model_type" not in facts:
            raise FileNotFoundError(f"{folder_or_id} has no config.json that names a model_type") from error
        named = PretrainedConfig(architectures=facts.get("architectures") or [facts["model_type"]])
        raise UnsupportedModel(named, "transformers has no code of its own for it") from error


def check_config(config: PretrainedConfig, device: torch.device) -> None:
    """Refuses what the configuration alone rules out on this device."""
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise UnsupportedModel(config, "it is an encoder-decoder")
    strange = sorted(set(getattr(text, "layer_types", None) or []) - _SERVED_LAYER_TYPES)
    if strange:
        raise UnsupportedModel(config, f"it has layers of type {', '.join(strange)}")
    if device.type == "cpu" and any(getattr(text, name, None) for name in _EXPERT_COUNTS):
        # How many tokens an expert sees depends on the other sessions, and so would the last bits of the logits.
        raise UnsupportedModel(config, "on the CPU the text of a mixture of experts would depend on the batch")
    for rope_type in _rope_types(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)):
        if rope_type in _REFUSED_ROPE_TYPES:
            raise UnsupportedModel(config, f"its rotary embedding is of type {rope_type}")
    if not isinstance(getattr(text, "max_position_embeddings", None), int):
        raise UnsupportedModel(config, "its configuration names no longest context")


def check_heads(config: PretrainedConfig, num_ranks: int) -> None:
    """Refuses a model whose heads can't be dealt out to so many ranks: each has a part of every layer's."""
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    if num_heads % num_ranks or num_kv_heads % num_ranks:
        raise UnsupportedModel(
            config, f"its {num_heads} query and {num_kv_heads} key heads can't be shared by {num_ranks} ranks"
        )


@contextmanager
def refusing(config: PretrainedConfig) -> Iterator[None]:
    """Names the architecture in what its layers refuse."""
    try:
        yield
    except AttentionRefused as refused:
        raise UnsupportedModel(config, str(refused)) from refused


def probe_texts(vocab_size: int) -> list[list[int]]:
    """Two short texts of arbitrary ids, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in PROBE_LENGTHS]


def find_layout(model: PreTrainedModel, token_ids: Sequence[int]) -> KvLayout:
    """Switches the model to our attention function and records the cache that one short pass asks for."""
    config = model.config
    recorder = LayoutRecorder()
    try:
        model.set_attn_implementation(ATTENTION_NAME)
    except ValueError as error:
        raise UnsupportedModel(config, "it has no replaceable attention function") from error
    with refusing(config):
        ids = torch.tensor([token_ids], device=model.device)
        model(ids, use_cache=False, dsd_attention=recorder)
    num_layers = config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)):
        reason = f"only {len(recorder.layers)} of its {num_layers} layers use the replaceable attention function"
        raise UnsupportedModel(config, reason)
    layers = tuple(recorder.layers[index] for index in range(num_layers))
    for index, layer in enumerate(layers):
        if layer.sliding_window != _window_of(config, index):
            raise UnsupportedModel(config, f"layer {index} does not say its sliding window")
    return KvLayout(layers, model.dtype, model.device, in_tiles=model.device.type == "cpu")


def check_logits(
    config: PretrainedConfig, got: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Refuses a model whose logits, mixed and in chunks, differ from those of its own plain forward pass."""
    for ours, plain in zip(got, expected, strict=True):
        # What is common to all tokens of a row says nothing about the model, so it is taken out first.
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
    """The rope types in a rope configuration, which is one dict or one per layer type."""
    if isinstance(parameters, dict):
        yield str(parameters.get("rope_type", parameters.get("type", "default")))
        for nested in parameters.values():
            if isinstance(nested, dict):
                yield from _rope_types(nested)
