"""The 40 prompts of tests/data, as token ids of a chat."""

from __future__ import annotations

import json
from pathlib import Path

from services.gateway.text.chat_template import ChatMessage, Conversation
from services.gateway.text.tokenizer import TargetTokenizer

FILE = Path(__file__).parents[1] / "data" / "prompts.jsonl"


def read_prompts(tokenizer: TargetTokenizer) -> list[list[int]]:
    """One list of ids a prompt, with the model's chat template around it."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    messages = [ChatMessage(role="user", content=json.loads(line)["prompt"]) for line in lines]
    return [list(tokenizer.encode_chat(Conversation([message]))) for message in messages]
