"""GGUF to Hugging Face folder: a tiny Llama written the way llama.cpp writes it comes back number for number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model_zoo.exporting.gguf_llama import UnsupportedGguf, convert, convert_all_but_weights

TOKENS = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "it", "12"]
MERGES = ["i t", "1 2"]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=5000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))  # what the target folder can hold exactly
    return model


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def rope_interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: LlamaForCausalLM, pre_tokenizer: str = "smollm", without: str = "") -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight", without):
            continue
        weight = tensor.float().numpy()
        if "q_proj" in name:
            weight = rope_interleaved(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = rope_interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(tmp_path: Path, model: LlamaForCausalLM) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    write_gguf(tmp_path / "tiny.gguf", model)
    convert(tmp_path / "tiny.gguf", folder)
    return folder


def test_what_a_gateway_reads_is_byte_for_byte_the_target_without_its_weights(
    tmp_path: Path, llama: LlamaForCausalLM
) -> None:
    target, small = converted(tmp_path, llama), tmp_path / "small"
    small.mkdir()
    convert_all_but_weights(tmp_path / "tiny.gguf", small)
    assert {path.name for path in target.iterdir()} - {path.name for path in small.iterdir()} == {"model.safetensors"}
    assert all(path.read_bytes() == (target / path.name).read_bytes() for path in small.iterdir())


def test_weights_and_hyperparameters_come_back_number_for_number(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    folder = converted(tmp_path, llama)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    back = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in llama.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    for key in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "head_dim"):
        assert getattr(back.config, key) == getattr(llama.config, key)
    assert (back.generation_config.eos_token_id, back.config.pad_token_id) == (2, 0)
    ids = torch.arange(40).reshape(1, 40)
    assert torch.equal(back(ids).logits, llama(ids).logits)


def test_the_tokenizer_splits_digits_although_a_merge_would_join_them(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    folder = converted(tmp_path, llama)
    direct, through_transformers = (
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(folder),
    )
    for text in ("it 12", "naïve 東京 🙂\n", "<bos>it<eos>"):
        ids = direct.encode(text).ids
        assert through_transformers.encode(text) == ids
        assert direct.decode(ids, skip_special_tokens=False) == text
    assert direct.encode("<bos>it12").tokens == ["<bos>", "it", "1", "2"]


def test_the_chat_template_is_kept(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(tmp_path, llama))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_another_pre_tokenizer_is_refused_by_name(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    write_gguf(tmp_path / "tiny.gguf", llama, pre_tokenizer="qwen2")
    with pytest.raises(UnsupportedGguf, match=r"tokenizer\.ggml\.pre must be 'smollm', got 'qwen2'"):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path, llama: LlamaForCausalLM) -> None:
    write_gguf(tmp_path / "tiny.gguf", llama, without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UnsupportedGguf, match=r"lacks 1 tensors; the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(tmp_path / "tiny.gguf", tmp_path)
