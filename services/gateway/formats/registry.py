"""Which formats the answers of a model have: by settings, or by its chat template where that is certain."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.gateway.formats.grammar import CallGrammar
from services.gateway.formats.harmony import FormatUnavailable, harmony_format
from services.gateway.formats.json_schema import Schema
from services.gateway.formats.message_parser import MessageParser, PlainText, StepParser
from services.gateway.formats.reasoning import REASONING_FORMATS, ReasoningFormat
from services.gateway.formats.source import Source, Steps
from services.gateway.formats.tool_formats import TOOL_FORMATS, ToolFormat

ToolParserName = Literal["auto", "none", "hermes", "llama3", "mistral", "harmony"]
ReasoningParserName = Literal["auto", "none", "think", "mistral"]

DETECTED: dict[str, Callable[[str], bool]] = {  # from the source of a chat template
    "harmony": lambda source: "<|channel|>" in source and "<|message|>" in source,
    "mistral": lambda source: "[TOOL_CALLS]" in source,
    "llama3": lambda source: "<|python_tag|>" in source or '"parameters": dictionary' in source,
    "hermes": lambda source: (
        "<tool_call>" in source
        and "arguments" in source
        and not any(other in source for other in ("<function=", "<arg_key>", "<|python_tag|>"))
    ),
}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request allows: calls of the tools with these names; not several: only the first call counts."""

    names: frozenset[str]
    several: bool = True


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """The formats of one model. None: its answers have no tool calls, or no reasoning, that is known. describes_tools:
    its chat template does not mention tools, so `described` (prompting.py) does it."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    describes_tools: bool = False

    @property
    def tells_calls_from_json(self) -> bool:
        """Whether an answer may be JSON or calls."""
        return self.tools is None or self.tools.name != "llama3"

    def markers(self, use: ToolUse | None) -> frozenset[str]:
        """Texts that must reach the parser, also where they are special tokens. use None: there are no tools."""
        used = [each for each in (self._tools_for(use), self.reasoning) if each is not None]
        return frozenset(marker for each in used for marker in each.markers)

    def parser(self, use: ToolUse | None, prompt_end: str) -> MessageParser:
        """A parser of one answer. prompt_end: the text before it, which may have begun the reasoning."""
        tools = self._tools_for(use)
        if self.reasoning is None and tools is None:
            return PlainText()
        source = Source(tools.new_id if tools else str, None if use is None or use.several else 1)
        return StepParser(source, self._steps(source, tools, use.names if use else (), prompt_end))

    def grammar(
        self,
        tools: Mapping[str, Any],
        answer: Schema | None,
        several: bool,
        special: Mapping[str, int],
        prompt_end: str,
    ) -> str:
        """What makes an answer call the given tools, or be JSON of a schema, as in CallGrammar. For tools there must be
        a format of calls."""
        name, is_open = self.tools.name if self.tools else "", self._is_open(prompt_end)
        return CallGrammar(name, tools, several, special, self.reasoning, is_open, answer).text

    def _tools_for(self, use: ToolUse | None) -> ToolFormat | None:
        return self.tools if self.tools and (use or self.tools.reads_reasoning) else None

    def _is_open(self, prompt_end: str) -> bool:
        return self.reasoning is not None and prompt_end.rstrip().endswith(self.reasoning.opening)

    def _steps(self, source: Source, tools: ToolFormat | None, names: Collection[str], prompt_end: str) -> Steps:
        if self.reasoning:
            yield from self.reasoning.parse(source, is_open=self._is_open(prompt_end))
        yield from tools.parser(source, names) if tools else source.rest()


def choose_formats(tools: ToolParserName, reasoning: ReasoningParserName, template: str | None) -> AnswerFormats:
    """template: source of the chat template; None: there is none. Raises FormatUnavailable."""
    source = template or ""
    detected = next((name for name, is_so in DETECTED.items() if is_so(source)), None)
    describes = detected != "harmony" and re.search(r"\btools\b", source) is None
    if tools == "auto":
        tool_name = "hermes" if describes else detected
    elif describes and tools not in ("none", "hermes"):
        raise FormatUnavailable(f"the chat template does not mention tools: tool_parser must be hermes, got {tools}")
    else:
        tool_name = tools
    if tool_name == "harmony":
        return AnswerFormats(harmony_format())
    found = (name for name, each in REASONING_FORMATS.items() if all(marker in source for marker in each.markers))
    reasoning_name = next(found, None) if reasoning == "auto" else reasoning
    return AnswerFormats(
        TOOL_FORMATS.get(tool_name or ""), REASONING_FORMATS.get(reasoning_name or ""), describes_tools=describes
    )
