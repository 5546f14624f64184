"""The default prompts, and prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness.files import ROOT
from services.gateway.text.chat_template import ChatMessage, Conversation
from services.gateway.text.tokenizer import TargetTokenizer

DEFAULT_PROMPTS = ROOT / "tests" / "data" / "prompts.jsonl"


def encode_prompts(tokenizer: TargetTokenizer, prompts: Iterable[str]) -> list[list[int]]:
    """Token ids of each prompt, inside the model's chat template."""
    return [list(tokenizer.encode_chat(Conversation([ChatMessage(role="user", content=prompt)]))) for prompt in prompts]
