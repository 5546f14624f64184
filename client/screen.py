"""An answer on a terminal while it grows, with a status line under it.

Invariant: complete lines are printed once and scroll like any output; only the unfinished last line and the status line
are redrawn. When the block ends, for whatever reason, the text so far remains and the status line is gone.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from client.sources import styled
from client.wire import TokenPiece


class GrowingAnswer:
    """Draws pieces as they come, inside a `with` block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = Text()  # the unfinished line
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._last:
            self._console.print(self._last, highlight=False)

    def add(self, pieces: list[TokenPiece], status: Text) -> None:
        """Shows more text and the current status line."""
        for piece in pieces:
            self._last.append_text(styled(piece))
        self._last.expand_tabs(8)
        *whole, self._last = self._lines()
        for line in whole:
            self._console.print(line, highlight=False)
        self._live.update(Group(self._last, status), refresh=True)

    def _lines(self) -> list[Text]:
        """The unfinished line, broken at line ends and at the terminal's width; the last part may still grow."""
        *ended, last = self._last.split("\n", allow_blank=True)
        wrapped = last.wrap(self._console, self._console.width)
        return [*ended, *wrapped] if len(wrapped) > 1 else [*ended, last]
