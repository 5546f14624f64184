"""A conversation as token ids: what messages contain is text, whatever it looks like.

Invariant: every special token in the ids comes from the chat template. Where no message contains the text of a special
token, the ids are those of the rendered text as a whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from services.gateway.text.chat_template import ChatMessage, ChatTemplate
from services.gateway.text.encoding import encode, encode_with_offsets

PRIVATE, NUM_PRIVATE = 0xE000, 6400  # characters of Unicode's private use area


class ConversationEncoder:
    """Encodes conversations with one tokenizer and one chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True  # as ordinary text
        added = tokenizer.get_added_tokens_decoder()
        self._specials = {token_id: token.content for token_id, token in added.items() if token.special}
        self._longest_first = sorted(set(self._specials.values()), key=len, reverse=True)

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Raises TemplateRefused, or PromptTooLong."""
        ids = self._encode_rendered(messages)
        return self._encode_apart(messages) if self._has_forged_special(ids, messages) else ids

    def _encode_rendered(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids of the rendered text, where special tokens in the contents are text."""
        contents = "\0".join(message.content for message in messages)
        found = [special for special in self._longest_first if special in contents]
        if not found:
            return encode(self._tokenizer, self._template.render(messages))
        marks = _marks(found, contents)
        marked = [replace(message, content=_replace(message.content, marks)) for message in messages]
        return self._encode_marked(self._template.render(marked), {mark: special for special, mark in marks.items()})

    def _has_forged_special(self, ids: Sequence[int], messages: Sequence[ChatMessage]) -> bool:
        """Whether there are more special tokens than the template has, and than stand for unknown characters."""
        neutral = [replace(message, content=chr(PRIVATE)) for message in messages]
        num_more = self._num_specials(ids) - self._num_specials(encode(self._tokenizer, self._template.render(neutral)))
        if num_more <= 0:
            return False
        return num_more > sum(self._num_specials(encode(self._plain, message.content)) for message in messages)

    def _num_specials(self, ids: Sequence[int]) -> int:
        return sum(token_id in self._specials for token_id in ids)

    def _encode_apart(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids where the template or the tokenizer makes a special token of other text in a content, of its capitals
        for example: each content is ordinary text of its own, which the template does not change."""
        contents = [message.content for message in messages]
        begin = _absent_from("\0".join(contents))
        marked = [replace(message, content=f"{begin}{i}{begin}") for i, message in enumerate(messages)]
        ids: list[int] = []
        for i, piece in enumerate(self._template.render(marked).split(begin)):
            ids += encode(self._tokenizer, piece) if i % 2 == 0 else encode(self._plain, contents[int(piece)])
        return ids

    def _encode_marked(self, text: str, marked: Mapping[str, str]) -> list[int]:
        """The ids of a rendered text. What lies between two special tokens is encoded as ordinary text, with the texts
        of special tokens in place of their marks."""
        encoding = encode_with_offsets(self._tokenizer, text)
        ids, spans = encoding.ids, encoding.offsets
        cuts = [i for i, token_id in enumerate(ids) if self._is_special(token_id, text[slice(*spans[i])])]
        result: list[int] = []
        first = start = 0
        for cut, (end, next_start) in [*((i, spans[i]) for i in cuts), (len(ids), (len(text), len(text)))]:
            between = text[start:end]
            restored = _replace(between, marked)
            result += ids[first:cut] if restored == between else encode(self._plain, restored)
            result += ids[cut : cut + 1]
            first, start = cut + 1, next_start
        return result

    def _is_special(self, token_id: int, text: str) -> bool:
        """Whether the token stands for its own name: a tokenizer may put one for unknown characters, too."""
        return token_id in self._specials and self._specials[token_id] in text


def _marks(specials: Sequence[str], contents: str) -> dict[str, str]:
    """For each special token a text that is in none of the contents, and that templates pass on as it is."""
    begin = _absent_from(contents)
    return {special: begin + chr(PRIVATE + i) for i, special in enumerate(specials)}


def _absent_from(contents: str) -> str:
    """Two characters that are not in the contents, and that templates pass on as they are."""
    begin = ""
    while begin in contents:
        begin = "".join(chr(PRIVATE + secrets.randbelow(NUM_PRIVATE)) for _ in range(2))
    return begin


def _replace(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text
