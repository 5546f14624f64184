"""The model's own chat template: messages in, prompt text out.

Templates are Jinja programs from the model's folder, written for the environment that transformers provides: trimmed
blocks, loop controls, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, and a
`{% generation %}` block. They run in Jinja's immutable sandbox and see plain strings and lists only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Words in objects that templates look at: names of fields, and those of JSON Schema. Whoever writes them, they stay.
_WORDS = """
type function id name arguments description parameters properties required items enum const default anyOf allOf oneOf
not additionalProperties format pattern title minimum maximum minLength maxLength minItems maxItems nullable examples
$ref $defs definitions
"""
KEYS = frozenset(_WORDS.split())
VALUES = frozenset(["function", "object", "array", "string", "number", "integer", "boolean", "null"])
PRIVATE_ESCAPES = re.compile(r"\\u(e[0-9a-f]{3}|f[0-8][0-9a-f]{2})")  # of characters that mark texts


class TemplateRefused(ValueError):
    """The model's template can't render these messages, for example because roles are out of order."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. fields: what else the template sees of it, such as `tool_calls`; their names are the
    gateway's."""

    role: str
    content: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template gets. options: variables of its own that a client sets, such as `enable_thinking`; no objects and
    no lists. tools: in OpenAI's shape. add_generation_prompt: whether the prompt ends where the assistant begins."""

    messages: Sequence[ChatMessage]
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True

    @property
    def has_calls(self) -> bool:
        """Whether tools were called, or have answered."""
        return any(message.role == "tool" or "tool_calls" in message.fields for message in self.messages)

    def texts(self) -> list[str]:
        """All texts that the client wrote, but for options: keys of its objects, too, but not KEYS and VALUES."""
        texts = [text for message in self.messages for text in _message_texts(message)]
        return [*texts, *_texts_in(list(self.tools))]

    def with_texts(self, change: Callable[[str], str]) -> Conversation:
        """The same with each of `texts` replaced, in their order."""
        messages = [
            ChatMessage(
                message.role,
                None if message.content is None else change(message.content),
                {name: _changed(value, change) for name, value in message.fields.items()},
            )
            for message in self.messages
        ]
        return replace(self, messages=messages, tools=_changed_in(list(self.tools), change))


def _message_texts(message: ChatMessage) -> Iterator[str]:
    for value in (message.content, *message.fields.values()):
        yield from [value] if isinstance(value, str) else _texts_in(value)


def _texts_in(value: Any) -> Iterator[str]:
    """Those in an object or a list, in the order in which `_changed_in` changes them."""
    if isinstance(value, str):
        yield from () if value in VALUES else (value,)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from () if key in KEYS else (key,)
            yield from _texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    return change(value) if isinstance(value, str) else _changed_in(value, change)


def _changed_in(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return value if value in VALUES else change(value)
    if isinstance(value, Mapping):
        return {key if key in KEYS else change(key): _changed_in(each, change) for key, each in value.items()}
    return [_changed_in(each, change) for each in value] if isinstance(value, list) else value


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training; here it has no effect."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 only reads it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
    return PRIVATE_ESCAPES.sub(lambda escape: chr(int(escape[1], 16)), text) if ensure_ascii else text


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """A compiled template and the special tokens it may name (`bos_token`, ...)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)
        self._words = frozenset(re.findall(r"\w+", source))

    def mentions(self, name: str) -> bool:
        """Whether the name of a variable or a field occurs in the template."""
        return name in self._words

    def render(self, conversation: Conversation) -> str:
        """The prompt. Raises TemplateRefused with the template's own message, or with
        the error inside it."""
        turns = [{"role": each.role, "content": each.content, **each.fields} for each in conversation.messages]
        given: dict[str, Any] = {"messages": turns, "tools": list(conversation.tools) or None, "documents": None}
        given["add_generation_prompt"] = conversation.add_generation_prompt
        try:
            return self._template.render(**{**conversation.options, **self._special_tokens, **given})
        except jinja2.TemplateError as error:
            raise TemplateRefused(str(error)) from error
        except Exception as error:  # the template is foreign code: it may fail in any way
            raise TemplateRefused(f"{type(error).__name__}: {error}") from error
