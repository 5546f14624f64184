"""The command line `dsd`: talk to a running system.

Exit statuses: 0 done, 1 the server refused or the answer broke off, 2 wrong usage, 3 nobody answers at the address, 130
ended by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from client import ask as asking
from client import statistics
from client import status as fleet_status
from client.gateway import KEY_VARIABLE, ClientError, Gateway, Unreachable, connected
from client.wire import Options, Speculation, is_utf8

REFUSED, UNREACHABLE, INTERRUPTED = 1, 3, 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help=f"Talk to a running DSD gateway. Its API key, if it wants one, is read from the variable {KEY_VARIABLE}.",
)


class Mode(StrEnum):
    """How to speculate."""

    OFF = "off"
    STATIC = "static"
    ADAPTIVE = "adaptive"


def _utf8(text: str | None) -> str | None:
    """The text of an option; raises BadParameter where it can't be sent."""
    if text is not None and not is_utf8(text):
        raise typer.BadParameter("the text is not UTF-8")
    return text


Url = Annotated[str, typer.Option(envvar="DSD_URL", help="Address of the gateway.")]
Model = Annotated[
    str | None, typer.Option(help="Model to ask; else the first one served.", show_default=False, callback=_utf8)
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False, callback=_utf8)]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.", show_default=False)]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.", show_default=False)]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Nucleus sampling.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.", show_default=False)]
SpeculationMode = Annotated[Mode | None, typer.Option("--speculation", help="How to speculate.", show_default=False)]
Window = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Window of static speculation, which it implies.", show_default=False),
]
Drafter = Annotated[
    str | None, typer.Option(help="The only drafter that may draft.", show_default=False, callback=_utf8)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
PIPE_COLUMNS = 200  # nothing has to be folded there
LOCAL = "http://127.0.0.1:8080"


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help='The prompt; "-", or none, reads it from standard input.')] = "-",
    url: Url = LOCAL,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    speculation: SpeculationMode = None,
    window: Window = None,
    drafter: Drafter = None,
    json: Json = False,
) -> None:
    """Asks one question: the answer goes to standard output, its statistics to standard error."""
    options = Options(max_tokens, temperature, top_p, seed, _speculation(speculation, window, drafter))
    with _told():
        messages = asking.conversation(_prompt(prompt), system)

    async def work(gateway: Gateway) -> None:
        if json:
            asking.print_json(await asking.ask(gateway, model, messages, options))
        else:
            answer = await asking.ask(gateway, model, messages, options, sys.stdout)
            console = Console(stderr=True)
            console.print(*([""] if console.is_terminal else []), statistics.table(answer), sep="\n")

    _run(url, work)


@app.command()
def chat(
    url: Url = LOCAL,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    speculation: SpeculationMode = None,
    window: Window = None,
    drafter: Drafter = None,
) -> None:
    """Chats on this terminal: tokens coloured by their fate, and a line of statistics while they come."""
    from client.chat import Chat, converse  # its library of line editing is slow to load, and only needed here
    from client.conversation import Conversation

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("a terminal is needed; `dsd ask` works in pipes")
    options = Options(max_tokens, temperature, top_p, seed, _speculation(speculation, window, drafter, fates=True))

    async def begin() -> Chat:
        gateway = await leaving.enter_async_context(connected(url))
        return Chat(gateway, Console(), model or await gateway.first_model(), options, Conversation(system or ""))

    with _told(), asyncio.Runner() as runner:
        leaving = AsyncExitStack()
        try:
            converse(runner.run(begin()), runner)
        finally:
            runner.run(leaving.aclose())


@app.command()
def status(
    url: Url = LOCAL,
    watch: Annotated[
        float | None, typer.Option(min=0.1, metavar="S", help="Look again every S seconds.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Shows the fleet: verifiers, drafters, controllers, how busy they are, and the windows decided."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS

    async def work(gateway: Gateway) -> None:
        if json:
            await fleet_status.show_json(gateway, watch)
        elif watch is not None:
            await fleet_status.watch(gateway, console, watch)
        else:
            await fleet_status.show(gateway, console)

    _run(url, work)


def main() -> None:
    """The program `dsd`."""
    app(prog_name="dsd")


def _run(url: str, work: Callable[[Gateway], Awaitable[None]]) -> None:
    async def connect_and_work() -> None:
        async with connected(url) as gateway:
            await work(gateway)

    with _told():
        asyncio.run(connect_and_work())


@contextmanager
def _told() -> Iterator[None]:
    """Ends the process with one line and a status that say what went wrong."""
    try:
        yield
    except ClientError as error:
        print(f"dsd: {error}", file=sys.stderr)
        raise typer.Exit(UNREACHABLE if isinstance(error, Unreachable) else REFUSED) from error
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(INTERRUPTED) from interrupt


def _prompt(argument: str) -> str:
    """The prompt itself; raises BadParameter where there is none, or none that can be sent."""
    if argument == "-" and sys.stdin.isatty():
        raise typer.BadParameter("no prompt: name one, or pipe it in", param_hint="PROMPT")
    try:
        prompt = sys.stdin.read() if argument == "-" else argument
        prompt.encode()
    except UnicodeError as error:
        raise typer.BadParameter("the text is not UTF-8", param_hint="PROMPT") from error
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    return prompt


def _speculation(mode: Mode | None, window: int | None, drafter: str | None, *, fates: bool = False) -> Speculation:
    """The options together; raises BadParameter where they contradict each other."""
    if window is not None and mode not in (None, Mode.STATIC):
        raise typer.BadParameter(f"a window is for static speculation, not for {mode}", param_hint="--window")
    if mode == Mode.STATIC and window is None:
        raise typer.BadParameter("static speculation needs --window", param_hint="--speculation")
    if mode == Mode.OFF and drafter is not None:
        raise typer.BadParameter("without speculation nobody drafts", param_hint="--drafter")
    return Speculation(Mode.STATIC.value if window is not None else mode and mode.value, window, drafter, fates)
