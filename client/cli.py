"""The command line `dsd`: talk to a running system.

Exit statuses: 0 success, 1 the server refused or the answer broke off, 2 wrong usage, 3 no server at the address, 130
ended by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client import ask as asking
from client import statistics
from client import status as fleet_status
from client.gateway import KEY_VARIABLE, ClientError, GatewayClient, Unreachable, connected
from client.sources import printable
from client.wire import AnswerOptions, DsdOptions, is_utf8

REFUSED, UNREACHABLE, INTERRUPTED = 1, 3, 130

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help=f"Talk to a running DSD gateway. The variable {KEY_VARIABLE} holds the API key, if the gateway needs one.",
)


class SpeculationMode(StrEnum):
    """How to speculate."""

    OFF = "off"
    STATIC = "static"
    ADAPTIVE = "adaptive"


def _utf8(text: str | None) -> str | None:
    """The text of an option; raises BadParameter where it can't be sent."""
    if text is not None and not is_utf8(text):
        raise typer.BadParameter("the text is not UTF-8")
    return text


Url = Annotated[str, typer.Option("--url", "--gateway", envvar="DSD_URL", help="Address of the gateway.")]
Model = Annotated[
    str | None, typer.Option(help="Model to use; default: the first one served.", show_default=False, callback=_utf8)
]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False, callback=_utf8)]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.", show_default=False)]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.", show_default=False)]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Nucleus sampling threshold.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Sampling seed: the same seed gives the same text.", show_default=False)]
SpeculationOption = Annotated[
    SpeculationMode | None, typer.Option("--speculation", help="How to speculate.", show_default=False)
]
Window = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Window in tokens; implies static speculation.", show_default=False),
]
Drafter = Annotated[
    str | None, typer.Option(help="Name of the only drafter that may draft.", show_default=False, callback=_utf8)
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
PIPE_COLUMNS = 200  # so that no line is folded
LOCAL = "http://127.0.0.1:8080"


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help='The prompt; "-", or no prompt, reads standard input.')] = "-",
    url: Url = LOCAL,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    speculation: SpeculationOption = None,
    window: Window = None,
    drafter: Drafter = None,
    json: Json = False,
) -> None:
    """Asks one question. The answer goes to standard output, its statistics to standard error."""
    options = AnswerOptions(max_tokens, temperature, top_p, seed, _dsd_options(speculation, window, drafter))
    with _errors_exit():
        messages = asking.conversation(_prompt(prompt), system)

    async def work(gateway: GatewayClient) -> None:
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
    speculation: SpeculationOption = None,
    window: Window = None,
    drafter: Drafter = None,
) -> None:
    """Chats on this terminal, with tokens coloured by their source and a line of live statistics."""
    from client.chat import Chat, converse  # the line editor is slow to import and needed only here
    from client.conversation import Conversation

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("chat needs a terminal; use `dsd ask` in pipes")
    options = AnswerOptions(
        max_tokens, temperature, top_p, seed, _dsd_options(speculation, window, drafter, sources=True)
    )

    async def begin() -> Chat:
        gateway = await leaving.enter_async_context(connected(url))
        return Chat(gateway, Console(), model or await gateway.first_model(), options, Conversation(system or ""))

    with _errors_exit(), asyncio.Runner() as runner:
        leaving = AsyncExitStack()
        try:
            converse(runner.run(begin()), runner)
        finally:
            runner.run(leaving.aclose())


@app.command()
def status(
    url: Url = LOCAL,
    watch: Annotated[
        float | None, typer.Option(min=0.1, metavar="S", help="Repeat every S seconds.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Shows the fleet: verifiers, drafters, controllers, their load and guesses, and the decided windows."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS

    async def work(gateway: GatewayClient) -> None:
        if json:
            await fleet_status.show_json(gateway, watch)
        elif watch is not None:
            await fleet_status.watch(gateway, console, watch)
        else:
            console.print(fleet_status.view(await gateway.fleet()))

    _run(url, work)


@app.command()
def draft(
    url: Url = LOCAL,
    folder: Annotated[
        Path | None,
        typer.Option("--draft", help="Folder of the draft model; default: the gateway's.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the drafter, where the gateway needs no keys.", show_default=False)
    ] = None,
) -> None:
    """Joins with a drafter on this machine, which serves your API key alone. DSD_DRAFTER_KEY holds its key."""
    from client.drafting import drafter as drafting

    async def work(gateway: GatewayClient) -> None:
        plans.append(await drafting.plan(gateway, folder, name))

    plans: list[drafting.DrafterPlan] = []
    _run(url, work)
    join = plans[0].join
    print(f"{plans[0].name} drafts for {join.model}, over {join.nats_url}", file=sys.stderr, flush=True)
    raise typer.Exit(drafting.run(plans[0]))


@app.command()
def doctor(
    url: Url = LOCAL,
    folder: Annotated[
        Path | None, typer.Option("--draft", help="Folder of a draft to check, too.", show_default=False)
    ] = None,
) -> None:
    """Checks a deployment from this machine: one line for each finding. Exits with 1 if anything is wrong."""
    from client.doctor.examination import examined

    async def work(gateway: GatewayClient) -> None:
        async for finding in examined(gateway, folder):
            print(printable(str(finding)), flush=True)
            levels.add(finding.level)

    levels: set[str] = set()
    _run(url, work)
    raise typer.Exit(REFUSED if "wrong" in levels else 0)


def main() -> None:
    """The program `dsd`."""
    app(prog_name="dsd")


def _run(url: str, work: Callable[[GatewayClient], Awaitable[None]]) -> None:
    async def connect_and_work() -> None:
        async with connected(url) as gateway:
            await work(gateway)

    with _errors_exit():
        asyncio.run(connect_and_work())


@contextmanager
def _errors_exit() -> Iterator[None]:
    """Turns a ClientError into one line on standard error and an exit status."""
    try:
        yield
    except ClientError as error:
        print(f"dsd: {error}", file=sys.stderr)
        raise typer.Exit(UNREACHABLE if isinstance(error, Unreachable) else REFUSED) from error
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(INTERRUPTED) from interrupt


def _prompt(argument: str) -> str:
    """The text of the prompt. Raises BadParameter if it is empty or not UTF-8."""
    if argument == "-" and sys.stdin.isatty():
        raise typer.BadParameter("no prompt: give it as an argument or pipe it in", param_hint="PROMPT")
    try:
        prompt = sys.stdin.read() if argument == "-" else argument
        prompt.encode()
    except UnicodeError as error:
        raise typer.BadParameter("the text is not UTF-8", param_hint="PROMPT") from error
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty", param_hint="PROMPT")
    return prompt


def _dsd_options(
    mode: SpeculationMode | None, window: int | None, drafter: str | None, *, sources: bool = False
) -> DsdOptions:
    """The options combined. Raises BadParameter if they contradict each other."""
    if window is not None and mode not in (None, SpeculationMode.STATIC):
        raise typer.BadParameter(f"--window needs static speculation, got {mode}", param_hint="--window")
    if mode == SpeculationMode.STATIC and window is None:
        raise typer.BadParameter("static speculation needs --window", param_hint="--speculation")
    if mode == SpeculationMode.OFF and drafter is not None:
        raise typer.BadParameter("--drafter is not allowed with --speculation off", param_hint="--drafter")
    return DsdOptions(
        SpeculationMode.STATIC.value if window is not None else mode and mode.value, window, drafter, sources
    )
