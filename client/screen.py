"""An answer on a terminal while it grows: its text above, a status line under it.

Invariant: whole lines are printed once and scroll away as any output; only the unfinished last line and the status line
are drawn again. When the block ends, for whatever reason, the text so far stands there and the status line is gone.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from client.fates import styled
from client.wire import Piece


class GrowingAnswer:
    """Draws pieces as they come, within a `with` block."""

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

    def add(self, pieces: list[Piece], status: Text) -> None:
        """Shows more text, and the status line as it now is."""
        for piece in pieces:
            self._last.append_text(styled(piece))
        self._last.expand_tabs(8)
        *whole, self._last = self._lines()
        for line in whole:
            self._console.print(line, highlight=False)
        self._live.update(Group(self._last, status), refresh=True)

    def _lines(self) -> list[Text]:
        """The unfinished line as it breaks at line ends and at the terminal's width; the last one may still grow."""
        *ended, last = self._last.split("\n", allow_blank=True)
        wrapped = last.wrap(self._console, self._console.width)
        return [*ended, *wrapped] if len(wrapped) > 1 else [*ended, last]
