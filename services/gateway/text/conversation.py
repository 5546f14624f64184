"""A conversation as token ids: what messages and tools contain is text, whatever it looks like.

Invariant: every special token in the ids comes from the chat template. Where nothing contains the text of a special
token, the ids are those of the rendered text as a whole.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

from services.gateway.text.chat_template import ChatTemplate, Conversation, TemplateRefused
from services.gateway.text.encoding import encode, encode_with_offsets

MAX_ID = 64  # characters of an id of a call whose length a template may look at
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
        self._unknown = frozenset(encode(self._plain, chr(PRIVATE)))  # may be special, and stands for any character
        self._longest_first = sorted(set(self._specials.values()), key=len, reverse=True)
        self._folded = [special.casefold() for special in self._longest_first]

    def encode(self, conversation: Conversation) -> list[int]:
        """Raises TemplateRefused, or PromptTooLong."""
        options = "\0".join(text for text in conversation.options.values() if isinstance(text, str)).casefold()
        if any(special in options for special in self._folded):
            raise TemplateRefused("an option has the text of a special token")
        ids = self._encode_rendered(conversation)
        return self._encode_apart(conversation) if self._has_forged_special(ids, conversation) else ids

    def unused(self, conversation: Conversation) -> list[str]:
        """Names of fields and options that the chat template does not mention."""
        fields = {name for message in conversation.messages for name in message.fields}
        named = [(f"messages.{name}", name) for name in sorted(fields)]
        named += [(_option_name(name), name) for name in conversation.options]
        return [shown for shown, name in named if not self._template.mentions(name)]

    def _encode_rendered(self, conversation: Conversation) -> list[int]:
        """The ids of the rendered text, where special tokens in the contents are text."""
        contents = "\0".join(conversation.texts())
        found = [special for special in self._longest_first if special in contents]
        if not found:
            return encode(self._tokenizer, self._template.render(conversation))
        marks = _marks(found, contents)
        marked = conversation.with_texts(lambda text: _replace(text, marks))
        shown = {mark: special for special, mark in marks.items()}
        shown |= {_in_json(mark): _in_json(special) for mark, special in shown.items()}
        return self._encode_marked(self._template.render(marked), shown)

    def _has_forged_special(self, ids: Sequence[int], conversation: Conversation) -> bool:
        """Whether there are more special tokens than the template has."""
        neutral = _Neutral()
        try:
            rendered = self._template.render(conversation.with_texts(neutral.of))
        except TemplateRefused:  # some templates look at the length of ids of calls
            rendered = self._template.render(conversation.with_texts(neutral.of_same_length))
        return self._num_specials(ids) > self._num_specials(encode(self._tokenizer, rendered))

    def _num_specials(self, ids: Sequence[int]) -> int:
        return sum(token_id in self._specials and token_id not in self._unknown for token_id in ids)

    def _encode_apart(self, conversation: Conversation) -> list[int]:
        """The ids where the template or the tokenizer makes a special token of other text in a content, of its capitals
        for example: each content is ordinary text of its own, which the template does not change."""
        contents = conversation.texts()
        begin, numbers = _absent_from("\0".join(contents)), itertools.count()
        marked = conversation.with_texts(lambda text: f'{begin}{next(numbers)}"{begin}')
        ids: list[int] = []
        for i, piece in enumerate(self._template.render(marked).split(begin)):
            if i % 2 == 0:
                ids += encode(self._tokenizer, piece)
            else:
                content = contents[int(re.match(r"[0-9]+", piece)[0])]  # type: ignore[index]
                ids += encode(self._plain, _in_json(content) if "\\" in piece else content)
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


def _option_name(name: str) -> str:
    return name if name == "reasoning_effort" else f"chat_template_kwargs.{name}"


def _marks(specials: Sequence[str], contents: str) -> dict[str, str]:
    """For each special token a text that is in none of the contents, and that templates pass on as it is. JSON changes
    it if it changes the token: a quotation mark tells."""
    begin = _absent_from(contents)
    quotes = ["" if _in_json(special) == special else '"' for special in specials]
    return {special: begin + quotes[i] + chr(PRIVATE + i) for i, special in enumerate(specials)}


def _absent_from(contents: str) -> str:
    """Two characters that are not in the contents, and that templates pass on as they are."""
    begin = ""
    while begin in contents:
        begin = "".join(chr(PRIVATE + secrets.randbelow(NUM_PRIVATE)) for _ in range(2))
    return begin


class _Neutral:
    """Private characters in place of texts, equal ones for equal texts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, text: str) -> str:
        high, low = divmod(self._numbers.setdefault(text, len(self._numbers)), NUM_PRIVATE)
        return chr(PRIVATE + low) + (chr(PRIVATE + high) if high else "")

    def of_same_length(self, text: str) -> str:
        """The same for a long text: it is no id."""
        short = self.of(text)
        return short.ljust(len(text), short[0]) if len(text) <= MAX_ID else short


def _in_json(text: str) -> str:
    """How the text stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _replace(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text
