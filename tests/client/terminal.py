"""A terminal in memory with `dsd` in it: types as a user would and reads what stands on the screen, with its styles."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyte

from tests.client.conftest import DSD, ROOT, environment

COLUMNS, ROWS = 100, 40
WAIT_S = 20.0
CTRL_C, CTRL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"


@dataclass(frozen=True)
class Look:
    """How a stretch of text is shown."""

    colour: str
    bold: bool
    underlined: bool


class Terminal:
    """The user's side of a pseudo-terminal."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._master = master
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._screen.write_process_input = self.type  # answers questions about the cursor
        self._stream = pyte.ByteStream(self._screen)
        self._changed = asyncio.Event()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def look(self, text: str) -> Look:
        """The style of the newest place where a text stands; all of it must have one."""
        row = max(number for number, line in enumerate(self.lines) if text in line)
        start = self.lines[row].rindex(text)
        cells = [self._screen.buffer[row][column] for column in range(start, start + len(text))]
        (look,) = {Look(cell.fg, cell.bold, cell.underscore) for cell in cells if cell.data != " "}
        return look

    def colours(self, text: str) -> set[str]:
        """All colours in the lines in which a text stands."""
        rows = [number for number, line in enumerate(self.lines) if text in line]
        return {self._screen.buffer[row][column].fg for row in rows for column in range(COLUMNS)}

    def type(self, text: str) -> None:
        """Text, or bytes that are not UTF-8 as surrogates."""
        os.write(self._master, text.encode(errors="surrogateescape"))

    def paste(self, text: str) -> None:
        """Pastes as terminals with bracketed paste do."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Returns once the screen is as expected."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} on the screen:\n{self.text}") from None

    async def shows(self, text: str) -> None:
        await self.until(lambda: text in self.text, repr(text))

    async def waits(self) -> None:
        """Returns once the newest line is an empty prompt."""
        await self.until(lambda: self.text.rpartition("\n")[2].strip() == ">", "prompt")

    async def ends(self) -> int:
        """The exit status."""
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def read(self) -> None:
        """Takes what the process has written."""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the process has ended and closed its side
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self._stream.feed(data)
        self._changed.set()


@asynccontextmanager
async def terminal(*argv: str, url: str, **env: str) -> AsyncIterator[Terminal]:
    """`dsd` on a terminal of its own; killed at the end if it still runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    variables = environment(TERM="xterm-256color", DSD_URL=url, **env)
    for name in ("COLUMNS", "LINES"):
        variables.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *DSD,
        *argv,
        cwd=ROOT,
        env=variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C means it
    )
    os.close(slave)
    user = Terminal(master, process)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, user.read)
    try:
        yield user
    finally:
        loop.remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
