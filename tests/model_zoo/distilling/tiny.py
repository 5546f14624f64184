"""A tiny target of a second family with four layers, as a user has it: weights, tokenizer, template, end tokens."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.models.auto import AutoModelForCausalLM
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen3 import Qwen3Config

from tests.gateway.tiny import SPECIAL, TEMPLATE, make_folder
from tests.verifier.torch_engine.tiny_models import save_model

VOCAB_SIZE, DEPTH, MAX_CONTEXT = 384, 4, 256
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "gpt_neox": GPTNeoXConfig(**SHAPE, intermediate_size=128),
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=96),
    "qwen3": Qwen3Config(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        tie_word_embeddings=True,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"] * 2,
        sliding_window=128,
    ),
}


def make_target(folder: Path, family: str) -> Path:
    make_folder(save_model(FAMILIES[family], folder))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def load(folder: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder).eval()
