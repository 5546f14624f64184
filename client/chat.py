"""dsd chat: a conversation on a terminal.

Invariant: a failed or stopped answer does not end the chat; the conversation keeps the part that was shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path

import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from client import statistics
from client.conversation import Conversation
from client.gateway import ClientError, GatewayClient, RequestRefused, StreamedAnswer
from client.screen import GrowingAnswer
from client.sources import legend, printable
from client.wire import AnswerOptions, ChatRequest, is_utf8

PROMPT = "> "
HELP = """\
/help           show this list
/reset          forget the conversation; the system message stays
/system [TEXT]  use this system message; without TEXT, none
/model [NAME]   list the models; with NAME, switch to that one
/stats          statistics of the last answer and of this chat
/save FILE      write the conversation to a new file, as Markdown
/quit           leave, as does Ctrl-D
Ctrl-C stops an answer. Alt-Enter begins a new line; pasted line breaks stay. A line that begins with a space and a /
is a message."""


class Chat:
    """One conversation with one gateway."""

    def __init__(
        self, gateway: GatewayClient, console: Console, model: str, options: AnswerOptions, conversation: Conversation
    ) -> None:
        self.model = model
        self.conversation = conversation
        self.is_over = False
        self._gateway = gateway
        self._console = console
        self._options = options
        self._last: StreamedAnswer | None = None
        self._totals = statistics.Totals()
        self._commands: dict[str, Callable[[str], Coroutine[None, None, None]]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._system,
            "/model": self._model,
            "/stats": self._stats,
            "/save": self._save,
            "/quit": self._quit,
        }

    async def take(self, line: str) -> None:
        """Runs one entry: a command, or a message to answer."""
        if not line.strip():
            return
        if not is_utf8(line):
            self.tell("The text is not UTF-8", style="red")
            return
        try:
            if line.startswith("/"):
                await self._command(line)
            else:
                await self._say(line.strip())
        except ClientError as error:
            self.tell(str(error), style="red")

    def tell(self, text: str, style: str = "") -> None:
        """Prints a line of the chat itself, not of the model."""
        self._console.print(printable(text), style=style, markup=False, highlight=False)

    # --- messages --------------------------------------------------------------------------------------------------

    async def _say(self, text: str) -> None:
        self.conversation.ask(text)
        self._last = None
        try:
            await self._answer()
        except RequestRefused as refusal:
            self.tell(str(refusal), style="red")
            if refusal.code == "context_length_exceeded":
                self.tell("The conversation is too long: /save FILE keeps it, /reset begins a new one.")
        except asyncio.CancelledError:
            self.tell("stopped", style="dim")
            raise
        finally:
            if self._last is not None and self._last.text:
                self.conversation.answer(self._last.text)
            else:
                self.conversation.take_back()

    async def _answer(self) -> None:
        """Streams an answer. If the server does not support sources, asks without them from now on."""
        try:
            await self._stream()
        except RequestRefused as refusal:
            if not (self._options.speculation.sources and _is_about_sources(refusal)):
                raise
            speculation = msgspec.structs.replace(self._options.speculation, sources=False)
            self._options = msgspec.structs.replace(self._options, speculation=speculation)
            await self._stream()

    async def _stream(self) -> None:
        request = ChatRequest.streamed(self.model, self.conversation.messages, self._options)
        async with self._gateway.answer(request) as answer:
            self._last = answer
            with GrowingAnswer(self._console) as screen:
                screen.add([], statistics.status_line(answer))
                async with aclosing(answer.pieces()) as batches:
                    async for pieces in batches:
                        screen.add(pieces, statistics.status_line(answer))
        self._totals.add(answer.usage, answer.report)
        self.tell(statistics.status_line(answer).plain, style="dim")

    # --- commands --------------------------------------------------------------------------------------------------

    async def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            self.tell(f"Unknown command {name}: /help lists the commands", style="red")
        else:
            await command(rest.strip())

    async def _help(self, rest: str) -> None:
        self.tell(HELP)
        self._console.print(legend())

    async def _reset(self, rest: str) -> None:
        self.conversation.reset()
        self.tell("The conversation is forgotten")

    async def _system(self, rest: str) -> None:
        self.conversation.system = rest
        self.tell("The system message is set" if rest else "The system message is removed")

    async def _model(self, rest: str) -> None:
        names = [model.id for model in await self._gateway.models()]
        if rest in names:
            self.model = rest
        elif rest:
            self.tell(f"Unknown model {rest}", style="red")
        self.tell("\n".join(f"{'*' if name == self.model else ' '} {name}" for name in names))

    async def _stats(self, rest: str) -> None:
        if self._last is not None:
            self._console.print(statistics.table(self._last))
        self.tell(str(self._totals))

    async def _save(self, rest: str) -> None:
        if not rest:
            self.tell("/save needs a file name: /save FILE", style="red")
            return
        try:
            _write_new(rest, self.conversation.transcript())
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.tell(f"Can't write {rest}: {reason}", style="red")
        else:
            self.tell(f"Written to {rest}")

    async def _quit(self, rest: str) -> None:
        self.is_over = True


def _write_new(path: str, text: str) -> None:
    """Writes a new file. Raises OSError, or RuntimeError or ValueError if `path` can't be a file name."""
    with Path(path).expanduser().open("x", encoding="utf-8") as file:
        file.write(text)


def _is_about_sources(refusal: RequestRefused) -> bool:
    """Whether the server does not know the option. Servers name it in `param`, or only in the message."""
    if refusal.status not in (400, 422):
        return False
    return refusal.param in ("dsd", "dsd.sources") or (refusal.param is None and "dsd" in str(refusal))


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter begins a new line."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def converse(chat: Chat, runner: asyncio.Runner) -> None:
    """Reads and runs entries until the user leaves. Ctrl-C ends only the current entry."""
    session: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=_keys())
    chat.tell(f"{chat.model}: /help lists commands and colours, Ctrl-D leaves", style="dim")
    while not chat.is_over:
        try:
            runner.run(chat.take(session.prompt(PROMPT)))
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
