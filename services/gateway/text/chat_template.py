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

FIXED = "type"  # key of a value that the client does not choose; templates look at it


class TemplateRefused(ValueError):
    """The model's template can't render these messages, for example because roles are out of order."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. fields: what else the template sees of it, such as `tool_calls`: objects, whose keys
    and types the gateway chooses, lists and texts."""

    role: str
    content: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template gets. options: variables of its own that a client sets, such as `enable_thinking`; no objects and
    no lists. add_generation_prompt: whether the prompt ends with the beginning of the assistant's turn."""

    messages: Sequence[ChatMessage]
    options: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True

    def texts(self) -> list[str]:
        """All texts that the client wrote, but for options."""
        return [text for message in self.messages for text in _texts_of([message.content, message.fields])]

    def with_texts(self, change: Callable[[str], str]) -> Conversation:
        """The same with each of `texts` replaced, in their order."""
        messages = []
        for message in self.messages:
            content, fields = _changed([message.content, message.fields], change)
            messages.append(ChatMessage(message.role, content, fields))
        return replace(self, messages=messages)


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from () if key == FIXED else _texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_of(each)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each if key == FIXED else _changed(each, change) for key, each in value.items()}
    return [_changed(each, change) for each in value] if isinstance(value, list) else value


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training; here it has no effect."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 only reads it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


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
        given: dict[str, Any] = {"messages": turns, "tools": None, "documents": None}
        given["add_generation_prompt"] = conversation.add_generation_prompt
        try:
            return self._template.render(**{**conversation.options, **self._special_tokens, **given})
        except jinja2.TemplateError as error:
            raise TemplateRefused(str(error)) from error
        except Exception as error:  # the template is foreign code: it may fail in any way
            raise TemplateRefused(f"{type(error).__name__}: {error}") from error
