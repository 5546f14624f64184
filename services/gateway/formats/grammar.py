"""Grammars that make an answer call tools: texts in llguidance's variant of Lark, one for each format.

Invariant: the parser of the format reads what such a grammar accepts as calls of the given tools and nothing else, with
arguments as the tools' schemas say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.gateway.formats.json_schema import Schema, as_text
from services.gateway.formats.reasoning import ReasoningFormat

NO_ARGUMENTS: Mapping[str, Any] = {"properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Makes an answer call one or several of the tools, or be JSON. tools: JSON Schemas of the arguments by name; None:
    there are none. special: ids of markers that are special tokens; other markers are text. reasoning: what may stand
    before the calls; is_open: the prompt has begun it. answer: schema of an answer that calls none; None: it must call
    one. Calls of llama3 are JSON themselves, and exclude such an answer."""

    format_name: str
    tools: Mapping[str, Mapping[str, Any] | None]
    several: bool = True
    special: Mapping[str, int] = field(default_factory=dict)
    reasoning: ReasoningFormat | None = None
    is_open: bool = False
    answer: Schema | None = None

    @property
    def text(self) -> str:
        ways = ["calls"] * bool(self.tools) + ["answer"] * (self.answer is not None)
        rules = [f"start: {self._prefix()}({' | '.join(ways)})"]
        if self.tools:
            rules += GRAMMARS[self.format_name](self)
        rules += [f"arguments_{i}: %json {_schema(parameters)}" for i, parameters in enumerate(self.tools.values())]
        if self.answer is not None:
            rules.append(f"answer: %json {as_text(self.answer)}")
        if self.reasoning and self.reasoning.closing in self.special:
            rules.append(f"thought: /(?s:.*)/ {self.marker(self.reasoning.closing)}")
        elif self.reasoning:
            rules.append(f"thought[suffix={_text(self.reasoning.closing)}]: /(?s:.*)/")
        return "\n".join(rules) + "\n"

    def marker(self, text: str) -> str:
        return f"<[{self.special[text]}]>" if text in self.special else _text(text)

    def alternatives(self, begin: str, end: str) -> str:
        """A call of each tool: the arguments with a text before them, in which `{name}` stands for its name, and a text
        behind."""
        calls = (
            f"{_text(begin.replace('{name}', name))} arguments_{i} {_text(end) if end else ''}".rstrip()
            for i, name in enumerate(self.tools)
        )
        return " | ".join(calls)

    def run(self, separator: str) -> str:
        """One call, or several with separators between them."""
        return f"call ({_text(separator)} call)*" if self.several else "call"

    def _prefix(self) -> str:
        if self.reasoning is None:
            return ""
        rest = 'thought "\\n"{0,2} '
        return rest if self.is_open else f"({self.marker(self.reasoning.opening)} {rest.strip()})? "


def _hermes(grammar: CallGrammar) -> Sequence[str]:
    begin, end = grammar.marker("<tool_call>"), grammar.marker("</tool_call>")
    return (
        f"calls: {grammar.run(chr(10))}",
        f'call: {begin} "\\n" one "\\n" {end}',
        f"one: {grammar.alternatives(_head('arguments'), '}')}",
    )


def _llama3(grammar: CallGrammar) -> Sequence[str]:
    return (f"calls: {grammar.run('; ')}", f"call: {grammar.alternatives(_head('parameters'), '}')}")


def _mistral(grammar: CallGrammar) -> Sequence[str]:
    """Models that know [ARGS] write the newer form."""
    marker = grammar.marker("[TOOL_CALLS]")
    if "[ARGS]" not in grammar.special:
        call = f"call: {grammar.alternatives(_head('arguments'), '}')}"
        return (f'calls: {marker} " [" {grammar.run(", ")} "]"', call)
    named = (f"{_text(name)} {grammar.marker('[ARGS]')} arguments_{i}" for i, name in enumerate(grammar.tools))
    return ("calls: call+" if grammar.several else "calls: call", f"call: {marker} one", f"one: {' | '.join(named)}")


def _harmony(grammar: CallGrammar) -> Sequence[str]:
    """One call, after an analysis or at once. The format's own reasoning comes before."""
    start, channel, constrain, message, end = (
        grammar.marker(f"<|{name}|>") for name in ("start", "channel", "constrain", "message", "end")
    )
    named = (
        f'{_text(f"commentary to=functions.{name} ")} {constrain} "json" {message} arguments_{i}'
        for i, name in enumerate(grammar.tools)
    )
    return (
        f'calls: ({channel} "analysis" {message} /(?s:.*)/ {end} {start} "assistant")? {channel} call',
        f"call: {' | '.join(named)}",
    )


GRAMMARS: dict[str, Callable[[CallGrammar], Sequence[str]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
    "harmony": _harmony,
}


def _head(arguments: str) -> str:
    return '{"name": "{name}", ' + f'"{arguments}": '


def _schema(parameters: Mapping[str, Any] | None) -> str:
    """Of an object in any case."""
    schema = dict(NO_ARGUMENTS if parameters is None else parameters)
    if "$ref" not in schema:
        schema["type"] = "object"
    return as_text(schema)


def _text(text: str) -> str:
    return json.dumps(text)
