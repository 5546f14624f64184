"""Which formats the answers of a model have: by settings, or by its chat template where that is certain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from services.gateway.formats.harmony import harmony_format
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
    """The formats of one model. None: its answers have no tool calls, or no reasoning, that is known."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

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

    def _tools_for(self, use: ToolUse | None) -> ToolFormat | None:
        return self.tools if self.tools and (use or self.tools.reads_reasoning) else None

    def _steps(self, source: Source, tools: ToolFormat | None, names: Collection[str], prompt_end: str) -> Steps:
        if self.reasoning:
            is_open = prompt_end.rstrip().endswith(self.reasoning.opening)
            yield from self.reasoning.parse(source, is_open=is_open)
        yield from tools.parser(source, names) if tools else source.rest()


def choose_formats(tools: ToolParserName, reasoning: ReasoningParserName, template: str | None) -> AnswerFormats:
    """template: source of the chat template; None: there is none. A template that does not speak of tools is answered
    in the words of `described` (prompting.py), which are those of Hermes. Raises FormatUnavailable."""
    tool_name = _detected_tools(template or "") if tools == "auto" else tools
    reasoning_name = next(_detected_reasoning(template or ""), None) if reasoning == "auto" else reasoning
    if tool_name == "harmony":
        return AnswerFormats(harmony_format())
    return AnswerFormats(TOOL_FORMATS.get(tool_name or ""), REASONING_FORMATS.get(reasoning_name or ""))


def _detected_tools(template: str) -> str | None:
    if "tools" not in template and "<|channel|>" not in template:
        return "hermes"
    return next((name for name, is_so in DETECTED.items() if is_so(template)), None)


def _detected_reasoning(template: str) -> Iterator[str]:
    return (name for name, each in REASONING_FORMATS.items() if all(marker in template for marker in each.markers))
