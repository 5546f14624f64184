"""dsd ask: one prompt, its answer on standard output as it streams."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TextIO

import msgspec

from client.fates import printable
from client.gateway import Answer, Gateway
from client.wire import ChatRequest, Message, Options


class WholeAnswer(msgspec.Struct, frozen=True):
    """What `dsd ask --json` prints; `usage` and `dsd` are as the server sent them, null where it sent none."""

    text: str
    finish_reason: str | None
    usage: msgspec.Raw
    dsd: msgspec.Raw


def conversation(prompt: str, system: str | None) -> list[Message]:
    """A prompt as the messages of a request."""
    return [*([Message("system", system)] if system else []), Message("user", prompt)]


async def ask(
    gateway: Gateway, model: str | None, messages: list[Message], options: Options, out: TextIO | None = None
) -> Answer:
    """A whole answer, written to `out` as it comes. Raises ClientError."""
    request = ChatRequest.streamed(model or await gateway.first_model(), messages, options)
    async with gateway.answer(request) as answer, aclosing(answer.pieces()) as batches:
        async for pieces in batches:
            if out is not None:
                write(out, "".join(piece.text for piece in pieces))
    if out is not None and not answer.text.endswith("\n"):
        write(out, "\n")
    return answer


def write(out: TextIO, text: str) -> None:
    """Text at once: as it is into files and pipes, without control characters to a terminal."""
    out.write(printable(text) if out.isatty() else text)
    out.flush()


def print_json(answer: Answer, out: TextIO = sys.stdout) -> None:
    whole = WholeAnswer(answer.text, answer.finish, answer.raw_usage, answer.raw_dsd)
    out.write(msgspec.json.encode(whole).decode() + "\n")
    out.flush()
