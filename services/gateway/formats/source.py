"""An answer's text under a parser: what has come, what is read of it, and the parts that it turned out to be.

A parser is a generator over a `Source`. It reads ahead, tells parts, and yields where the text that has come does not
decide yet. Invariant: the parts joined are the same however the text is cut into pieces, so a decision depends only on
text that is there, or on its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from services.gateway.formats.parts import CallArguments, CallBegin, Content, Part, Reasoning, joined

Steps: TypeAlias = Generator[None, None, None]  # a parser; it yields to wait for more text
Decision: TypeAlias = Generator[None, None, bool]


class Source:
    """`text[at:]` is not read yet. new_id: makes the id of a call. most_calls: further ones are left out."""

    def __init__(self, new_id: Callable[[], str], most_calls: int | None = None) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.num_calls = 0
        self._new_id = new_id
        self._most_calls = most_calls
        self._parts: list[Part] = []
        self._space = ""  # white space, which is dropped before a call and at the end of reasoning
        self._is_behind_block = False  # nothing but white space has come since the reasoning or the latest call
        self._has_content = False

    # --- reading ---------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Drops the text that is read, which no parser goes back to."""
        self.text, self.at = self.text[self.at :], 0

    def peek(self) -> Generator[None, None, str]:
        """The next character behind white space, which is read; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            yield

    def take(self, word: str) -> Decision:
        """Reads white space and the word, if they come next. The end of the text may cut the word off."""
        before = self.at
        yield from self.peek()
        while not self.ended and len(self.text) < self.at + len(word) and word.startswith(self.text[self.at :]):
            yield
        rest = self.text[self.at : self.at + len(word)]
        if rest and word.startswith(rest):
            self.at += len(rest)
            return True
        self.at = before
        return False

    def until(self, marker: str, tell: Callable[[str], None]) -> Decision:
        """Tells the text up to the marker and reads that; False: the text has ended. The marker is then all that is
        read of `text`."""
        while (place := self.text.find(marker, self.at)) < 0:
            end = len(self.text) - (0 if self.ended else overlap(self.text, self.at, marker))
            tell(self.text[self.at : end])
            self.at = end
            self.forget()
            if self.ended:
                return False
            yield
        tell(self.text[self.at : place])
        self.at = place
        self.forget()
        self.at = len(marker)
        return True

    def rest(self) -> Steps:
        """Tells all that follows as content."""
        while True:
            self.content(self.text[self.at :])
            self.text, self.at = "", 0
            if self.ended:
                return
            yield

    # --- telling ---------------------------------------------------------------------------------------------------

    def content(self, text: str) -> None:
        """White space at the end waits: it is dropped if a call follows."""
        text = self._space + text
        if self._is_behind_block and not self._has_content:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._parts.append(Content(shown))
            self._has_content, self._is_behind_block = True, False

    def reasoning(self, text: str) -> None:
        text = self._space + text
        if not self._is_behind_block:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._parts.append(Reasoning(shown))
            self._is_behind_block = True

    def end_reasoning(self) -> None:
        self._space, self._is_behind_block = "", True

    def begin_call(self, name: str) -> None:
        self.forget()
        self._space, self._is_behind_block = "", True
        if self._is_shown(self.num_calls):
            self._parts.append(CallBegin(self.num_calls, self._new_id(), name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """Of the latest call."""
        if text and self._is_shown(self.num_calls - 1):
            self._parts.append(CallArguments(self.num_calls - 1, text))

    def _is_shown(self, index: int) -> bool:
        return self._most_calls is None or index < self._most_calls

    def take_parts(self) -> list[Part]:
        """What was told since the last time; at the end with the white space that nothing followed."""
        if self.ended and not self._is_behind_block and self._space:
            self._parts.append(Content(self._space))
            self._space = ""
        parts, self._parts = self._parts, []
        return joined(parts)


def overlap(text: str, start: int, marker: str) -> int:
    """Length of the longest end of `text[start:]` that the marker begins with."""
    longest = min(len(text) - start, len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
