"""python -m tests.family_pair --out DIR: a target and a draft of a second family, made and trained in minutes.

Both are GPT-NeoX, which onnxruntime-genai's model builder does not know, and learn the project's licence. DIR/target
and DIR/draft are then what a user would bring, with tokenizer, chat template and end tokens of their own. They know
that text by heart and nothing else: the pair shows that any model is served, not how fast.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "LICENSE"  # a text that never changes
PAD, USER, ASSISTANT, END = SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('this model knows no system message') }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NUM_TOKENS, MAX_CONTEXT = 1000, 512
PART_LENGTH = 600  # most characters of an answer, about
WINDOW, BATCH, LEARNING_RATE = 96, 8, 3e-3
STEPS = 1100


@dataclass(frozen=True)
class Size:
    """The shape of one model. vocab_size: its rows, which may exceed the tokenizer's tokens."""

    hidden: int
    layers: int
    heads: int
    vocab_size: int
    effort: int  # training steps per step of the target


SIZES = {"target": Size(192, 4, 6, 1024, effort=1), "draft": Size(96, 2, 3, NUM_TOKENS, effort=2)}


def conversations() -> Iterator[str]:
    """Sections of the text as answers to their headings, in the chat template's format."""
    terms, _, _ = TEXT.read_text(encoding="utf-8").partition("END OF TERMS AND CONDITIONS")
    for section in re.split(r"^ +\d+\. ", terms, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition(".")
        for number, part in enumerate(parts_of(body.strip())):
            question = f"{heading}, part {number + 1}" if number else heading
            yield f"{USER}{question}{END}{ASSISTANT}{part}{END}"


def parts_of(text: str) -> Iterator[str]:
    """Groups whole paragraphs, each on one line, to about PART_LENGTH characters."""
    part = ""
    for paragraph in text.split("\n\n"):
        piece = " ".join(paragraph.split())
        if part and len(part) + len(piece) > PART_LENGTH:
            yield part.strip()
            part = ""
        part += piece + "\n"
    yield part.strip()


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Trains a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_model(size: Size, ids: torch.Tensor, steps: int) -> GPTNeoXForCausalLM:
    """A model trained for so many steps on random windows of the text; the same in every run."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=SPECIAL.index(PAD),
        eos_token_id=SPECIAL.index(PAD),
        tie_word_embeddings=True,
    )
    model = GPTNeoXForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(len(ids) - WINDOW, (BATCH, 1))
        windows = ids[starts + torch.arange(WINDOW)]  # [batch, window]
        loss = model(input_ids=windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            print(f"  step {step + 1} of {steps}: loss {loss.item():.2f}", flush=True)
    return model.eval()


def save(model: GPTNeoXForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a folder as the hub has it."""
    model.generation_config.eos_token_id = [SPECIAL.index(END), SPECIAL.index(PAD)]
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2), encoding="utf-8")


def make_pair(out: Path, steps: int) -> None:
    """Writes out/target and out/draft."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # a second thread would slow such small products down
    texts = list(conversations())
    tokenizer = train_tokenizer(texts)
    ids = torch.tensor([token_id for text in texts for token_id in tokenizer.encode(text).ids])
    for name, size in SIZES.items():
        print(f"training the {name} on {len(ids)} tokens", flush=True)
        save(train_model(size, ids, size.effort * steps), tokenizer, out / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the two")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="training steps of the target; the draft takes twice as many"
    )
    arguments = parser.parse_args()
    make_pair(arguments.out, arguments.steps)
