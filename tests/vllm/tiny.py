"""Tiny random models of several families, saved as vLLM loads them. They have no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from benchmarks.experiments.int8_copy import quantise

VOCABULARY = 512
MAX_CONTEXT = 896
FLAGS = f"--enforce-eager --skip-tokenizer-init --max-model-len {MAX_CONTEXT}"
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # so that every token depends on those before it
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def llama() -> PretrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPE)


def mixture_of_experts() -> PretrainedConfig:
    """Qwen 2 MoE: four experts, two of them for a token, and a shared one."""
    from transformers import Qwen2MoeConfig

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    return Qwen2MoeConfig(**SHAPE, **experts, shared_expert_intermediate_size=128, decoder_sparse_step=1)


def sliding_window() -> PretrainedConfig:
    """Gemma 2: a sliding window in every other layer, and soft caps, which the built-in engine refuses."""
    from transformers import Gemma2Config

    return Gemma2Config(**SHAPE | {"tie_word_embeddings": True}, sliding_window=64, query_pre_attn_scalar=32)


FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "mixture of experts": mixture_of_experts,
    "sliding window": sliding_window,
}


def save(config: PretrainedConfig, folder: Path) -> Path:
    """Saves a model of random weights in float32. Returns the folder."""
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def save_int8(folder: Path) -> Path:
    """Saves the Llama with int8 weights, in the format of compressed-tensors."""
    with TemporaryDirectory() as plain:
        return quantise(save(llama(), Path(plain)), folder)


def top_logits(folder: Path, text: Sequence[int]) -> tuple[float, float]:
    """The two highest logits of a saved model after a text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        highest, second = model(torch.tensor([text])).logits[0, -1].topk(2).values.tolist()
    return highest, second
