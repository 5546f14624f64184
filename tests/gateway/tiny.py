"""A tiny tokenizer with everything a target's folder has, made in the test."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["hello world, the quick brown fox", "Once upon a time there was a stop", "naïve café 😀 日本語 text"]


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, so that every text can be written and a character may span tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_folder(folder: Path) -> Path:
    """A target's folder, but for the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": {"content": SPECIAL[2]}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def make_byte_level() -> Tokenizer:
    """The 256 bytes as tokens, and after them words, parts that cross characters' borders and added tokens."""
    parts = ["hi", "Ġday", "©Ã", "ĢâĤ"]
    vocabulary = {part: n for n, part in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *parts])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<é>", special=False), AddedToken("</s>", special=True)])
    return tokenizer


def make_byte_fallback() -> Tokenizer:
    """The 256 bytes as tokens `<0x00>`…, and after them words with marked spaces and added tokens."""
    parts = ["hi", "▁day", "▁"]
    vocabulary = {part: n for n, part in enumerate([*(f"<0x{byte:02X}>" for byte in range(256)), *parts])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("</s>", special=True)])
    return tokenizer
