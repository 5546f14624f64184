"""The target's tokenizer, chat template and stop ids, read from the target's own folder.

`tokenizer.json` is required. Optional are a chat template in `chat_template.jinja` or `tokenizer_config.json`, and stop
ids in `generation_config.json` or `config.json`. No model code is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from services.gateway.formats.message_parser import MessageParser
from services.gateway.session.generation import Generation
from services.gateway.text.chat_template import ChatTemplate, Conversation, TemplateRefused
from services.gateway.text.conversation import ConversationEncoder
from services.gateway.text.detokenizer import detokenizer_of
from services.gateway.text.echoed_prompt import EchoedPrompt
from services.gateway.text.encoding import encode
from services.gateway.text.output_text import AnswerText
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol.messages import TokenIds

NUM_END_TOKENS = 16  # of a prompt, in which a block of reasoning may begin


class UnusableTarget(ValueError):
    """A file in the target's folder is missing or malformed."""


class TargetTokenizer:
    """Converts prompts to token ids and token ids to text, for one target model."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, stop_ids: TokenIds) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._conversations = ConversationEncoder(tokenizer, template) if template else None
        self._token_bytes = TokenBytes(tokenizer)
        self._showing: dict[frozenset[str], TokenBytes] = {}
        self.stop_ids = stop_ids
        self.vocab_size = int(tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def template(self) -> str | None:
        """Source of the chat template, if there is one."""
        return self._template.source if self._template else None

    def mentions(self, name: str) -> bool:
        """Whether the chat template uses a variable or field of this name."""
        return self._template is not None and self._template.mentions(name)

    def encode_chat(self, conversation: Conversation) -> TokenIds:
        """The prompt that the model's chat template makes of a conversation. In a message the text of a special token
        is ordinary text. Raises TemplateRefused, or PromptTooLong."""
        if self._conversations is None:
            raise TemplateRefused("this model has no chat template; use /v1/completions")
        return TokenIds(self._conversations.encode(conversation))

    def unused(self, conversation: Conversation) -> list[str]:
        """Names of what a conversation has and its chat template does not use."""
        return self._conversations.unused(conversation) if self._conversations else []

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> TokenIds:
        """Plain text, with the special tokens that the tokenizer puts around it, if any. The text of a special token
        is that token. Raises PromptTooLong."""
        return TokenIds(encode(self._tokenizer, text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a prompt given as token ids."""
        (text,) = self._tokenizer.decode_batch(
            [list(token_ids)], skip_special_tokens=skip_special_tokens
        )  # releases the interpreter lock
        return str(text)

    def piece(self, token_id: int) -> str | None:
        """The token as the vocabulary has it; None for an id that it does not have."""
        piece: str | None = self._tokenizer.id_to_token(token_id)
        return piece

    def answer(
        self,
        generation: Generation,
        stops: Iterable[str],
        parser: MessageParser | None = None,
        markers: frozenset[str] = frozenset(),
        num_echoed: int = 0,
    ) -> AnswerText:
        """A reader for the tokens of one answer. stops: stop strings. markers: special tokens that are text here.
        num_echoed: characters of an echoed prompt."""
        token_bytes = self._showing.get(markers)
        if token_bytes is None:
            token_bytes = self._showing[markers] = self._token_bytes.showing(markers)
        detokenizer, stop_ids = detokenizer_of(token_bytes, generation.prompt_ids), generation.stop_ids
        return AnswerText(detokenizer, token_bytes, stops, stop_ids, generation.min_tokens, parser, num_echoed)

    def special_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Ids of those texts that are special tokens."""
        return self._token_bytes.special_ids(texts)

    def end_of(self, prompt_ids: Sequence[int]) -> str:
        """The last text of a prompt, with its special tokens."""
        return str(self._tokenizer.decode(list(prompt_ids[-NUM_END_TOKENS:]), skip_special_tokens=False))

    def echo(self, generation: Generation, text: str) -> EchoedPrompt:
        """The prompt before the answer. text: of the prompt."""
        return EchoedPrompt(self._token_bytes, generation.prompt_ids, text, is_scored=generation.scores_prompt)


def load_tokenizer(folder: Path) -> TargetTokenizer:
    """Reads the target's folder; raises UnusableTarget naming the file that is missing or malformed."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnusableTarget(f"{path} is missing: the target's folder must contain its tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise UnusableTarget(f"{path} is not a valid tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    return TargetTokenizer(tokenizer, _load_template(folder, config), _load_stop_ids(folder, config, tokenizer))


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file is missing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnusableTarget(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnusableTarget(f"{path} does not contain a JSON object")
    return content


def _load_template(folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    try:
        return ChatTemplate(source, _special_tokens(config))
    except (jinja2.TemplateError, TypeError) as error:
        raise UnusableTarget(f"the chat template in {folder} does not compile: {error}") from error


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The tokens that templates may name. The file has each as a string or as an object with a `content`."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _load_stop_ids(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> TokenIds:
    """End-of-sequence ids, from the first of generation_config.json, config.json, tokenizer_config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = _read_json(folder / name).get("eos_token_id")
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
                raise UnusableTarget(f"{folder / name}: eos_token_id must be a list of token ids, got {ids}")
            return TokenIds(ids)
    eos = _special_tokens(config).get("eos_token")
    token_id = None if eos is None else tokenizer.token_to_id(eos)
    return TokenIds() if token_id is None else TokenIds([token_id])
