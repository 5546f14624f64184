"""Prompts for a distillation: a user's own from files, and user turns that the target itself makes up.

Invariant: a prompt is the token ids that the target's chat template makes of a conversation up to its answer, or plain
text if the target has no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from model_zoo.prompt_file import read_prompts, read_rows

MARK = "\ue000"  # stands for the user's turn; a private code point, which no template has


def file_prompts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The prompts of a JSONL file: one field of text a line (prompt_file.py), or recorded traffic, whose `messages` are
    a conversation as OpenAI has it; an answer that ends it is left out. Raises ValueError naming the line."""
    rows = read_rows(path)
    if "messages" not in rows[0]:
        return [encode_chat([{"role": "user", "content": text}], tokenizer) for text in read_prompts(path)]
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(encode_chat(_before_the_answer(row["messages"]), tokenizer))
        except Exception as error:  # templates raise what they like
            raise ValueError(f"{path}:{number}: messages: {type(error).__name__}: {error}") from error
    return found


def _before_the_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not kept:
        raise ValueError("there is no message before the answer")
    return kept


def encode_chat(messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt that the chat template makes of a conversation; without a template, the text of its last message."""
    if tokenizer.chat_template is None:
        return list(tokenizer(messages[-1]["content"])["input_ids"])
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))


def before_user_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands before a user's turn. A model that has been trained on chats continues it with a question, as Xu and
    others found (Magpie, arXiv 2406.08464, section 2). Without a chat template: the tokens that begin a text."""
    if tokenizer.chat_template is None:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [] if first is None else [first]
    text = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    return list(tokenizer(str(text).partition(MARK)[0], add_special_tokens=False)["input_ids"])


def as_prompt(turn: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt of a user's turn that the target made up; empty if it says nothing."""
    text = str(tokenizer.decode(list(turn), skip_special_tokens=True)).strip()
    return encode_chat([{"role": "user", "content": text}], tokenizer) if text else []
