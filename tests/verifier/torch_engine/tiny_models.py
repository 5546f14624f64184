"""Tiny randomly initialised language models of several families, saved as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.models.bloom import BloomConfig
from transformers.models.falcon import FalconConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.mixtral import MixtralConfig
from transformers.models.qwen3 import Qwen3Config
from transformers.models.t5 import T5Config

VOCAB_SIZE = 151
MAX_CONTEXT = 1024
_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA_SHAPE = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 96}

SERVED: dict[str, Callable[[], PretrainedConfig]] = {
    # Norms on queries and keys, head size apart from the hidden size, activations split among three threads.
    "qwen3": lambda: Qwen3Config(**{**LLAMA_SHAPE, "intermediate_size": 1040}, head_dim=32),
    # Partial rotary embedding, parallel residual, LayerNorm, biases, one matrix for q, k and v.
    "gpt_neox": lambda: GPTNeoXConfig(**_SHAPE, intermediate_size=128, rotary_pct=0.25),
    # Learned positions, Conv1D layers, tied head.
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, n_positions=MAX_CONTEXT),
    # What LlamaNetwork computes, without a bias and with plain angles.
    "llama": lambda: LlamaConfig(**LLAMA_SHAPE),
    "mistral with a sliding window": lambda: MistralConfig(**LLAMA_SHAPE, sliding_window=8),
}
REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "softcap": (lambda: Gemma2Config(**LLAMA_SHAPE, head_dim=16), "Gemma2ForCausalLM.*softcap"),
    "encoder-decoder": (
        lambda: T5Config(vocab_size=VOCAB_SIZE, d_model=32, d_ff=32, num_layers=1, num_heads=2),
        "T5ForConditionalGeneration.*encoder-decoder",
    ),
    "recurrent": (
        lambda: MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=1),
        "MambaForCausalLM",
    ),
    "attention of its own": (
        lambda: FalconConfig(vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=1, num_attention_heads=4),
        "FalconForCausalLM",
    ),
    "linear biases": (
        lambda: BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=64, n_layer=1, n_head=4),
        "BloomForCausalLM",
    ),
    "batch-dependent angles": (
        lambda: LlamaConfig(**LLAMA_SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "LlamaForCausalLM.*dynamic",
    ),
    "experts": (lambda: MixtralConfig(**LLAMA_SHAPE, num_local_experts=2), "MixtralForCausalLM.*experts"),
}


def save_model(config: PretrainedConfig, folder: Path) -> Path:
    """Saves a model with random weights of a fixed seed, large enough that texts are not constant."""
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 3
    model.save_pretrained(folder)
    return folder
