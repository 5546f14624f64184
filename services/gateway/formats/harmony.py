"""The format of gpt-oss, read by its own library: messages in channels, of which one may call a function.

    <|channel|>analysis<|message|>…<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}

The library is an optional extra, imported only where a gateway uses this format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from services.gateway.formats.source import Source, Steps, overlap
from services.gateway.formats.tool_formats import ToolFormat

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding

MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
FUNCTIONS = "functions."


class FormatUnavailable(RuntimeError):
    """What reads a format is not there."""


def harmony_format() -> ToolFormat:
    """Raises FormatUnavailable where the library or its vocabulary is missing."""
    try:
        from openai_harmony import HarmonyEncodingName, HarmonyError, load_harmony_encoding
    except ImportError as error:
        raise FormatUnavailable(
            "tool_parser harmony needs openai-harmony: install dsd-serving[harmony], or set DSD_TOOL_PARSER=none"
        ) from error
    try:
        encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    except HarmonyError as error:
        where = "TIKTOKEN_ENCODINGS_BASE must name a folder with o200k_base.tiktoken"
        raise FormatUnavailable(f"openai-harmony can't load its vocabulary: {where} ({error})") from error

    def parse(source: Source, names: Collection[str]) -> Steps:
        return _Messages(encoding, source, calls=bool(names)).read()

    return ToolFormat("harmony", parse, MARKERS, reads_reasoning=True)


class _Messages:
    """Reads the messages of one answer. calls: whether there are functions to call."""

    def __init__(self, encoding: HarmonyEncoding, source: Source, *, calls: bool) -> None:
        from openai_harmony import HarmonyError, Role, StreamableParser, StreamState

        self._encoding = encoding
        self._source = source
        self._calls = calls
        self._parser = StreamableParser(encoding, Role.ASSISTANT, strict=False)
        self._content_state, self._error = StreamState.CONTENT, HarmonyError
        self._header: list[int] = []  # tokens of a message whose content has not begun
        self._tell: Callable[[str], None] | None = None  # takes the content of the message that has begun
        self._told: set[Callable[[str], None]] = set()

    def read(self) -> Steps:
        source = self._source
        while True:
            held = 0 if source.ended else max(overlap(source.text, source.at, marker) for marker in MARKERS)
            text = source.text[source.at : len(source.text) - held]
            source.at += len(text)
            source.forget()
            for token_id in self._encoding.encode(text, allowed_special=set(MARKERS), disallowed_special=()):
                self._process(token_id)
            if source.ended:
                self._end()
                return
            yield

    def _process(self, token_id: int) -> None:
        try:
            self._parser.process(token_id)
        except self._error:  # neither a header nor content, so it stays what it is
            self._source.content(self._encoding.decode([token_id]))
            return
        if self._parser.state != self._content_state:
            self._header = [*self._header, token_id] if self._tell is None else []
            self._tell = None
        elif self._tell is None:
            self._begin()
        elif delta := self._parser.last_content_delta:
            self._tell(delta)

    def _begin(self) -> None:
        """Of the content of a message."""
        self._header = []
        recipient, source = self._parser.current_recipient or "", self._source
        if self._calls and recipient.startswith(FUNCTIONS):
            source.begin_call(recipient.removeprefix(FUNCTIONS))
            self._tell = source.arguments
            return
        self._tell = source.reasoning if self._parser.current_channel == "analysis" else source.content
        if self._tell in self._told:
            self._tell("\n")
        self._told.add(self._tell)

    def _end(self) -> None:
        """An answer without markers is content."""
        text = self._encoding.decode(self._header)
        if not any(marker in text for marker in MARKERS):
            self._source.content(text)
