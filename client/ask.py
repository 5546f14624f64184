"""dsd ask: one prompt; its answer streams to standard output."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TextIO

import msgspec

from client.gateway import GatewayClient, StreamedAnswer
from client.sources import printable
from client.wire import AnswerOptions, ChatMessage, ChatRequest


class WholeAnswer(msgspec.Struct, frozen=True):
    """The output of `dsd ask --json`. `usage` and `dsd` are the server's, null if it sent none."""

    text: str
    finish_reason: str | None
    usage: msgspec.Raw
    dsd: msgspec.Raw


def conversation(prompt: str, system: str | None) -> list[ChatMessage]:
    """A prompt as the messages of a request."""
    return [*([ChatMessage("system", system)] if system else []), ChatMessage("user", prompt)]


async def ask(
    gateway: GatewayClient,
    model: str | None,
    messages: list[ChatMessage],
    options: AnswerOptions,
    out: TextIO | None = None,
) -> StreamedAnswer:
    """The whole answer, also written to `out` as it comes. model None: the first served. Raises ClientError."""
    request = ChatRequest.streamed(model or await gateway.first_model(), messages, options)
    async with gateway.answer(request) as answer, aclosing(answer.pieces()) as batches:
        async for pieces in batches:
            if out is not None:
                write(out, "".join(piece.text for piece in pieces))
    if out is not None and not answer.text.endswith("\n"):
        write(out, "\n")
    return answer


def write(out: TextIO, text: str) -> None:
    """Writes and flushes text: unchanged to files and pipes, without control characters to a terminal."""
    out.write(printable(text) if out.isatty() else text)
    out.flush()


def print_json(answer: StreamedAnswer, out: TextIO = sys.stdout) -> None:
    whole = WholeAnswer(answer.text, answer.finish, answer.raw_usage, answer.raw_dsd)
    out.write(msgspec.json.encode(whole).decode() + "\n")
    out.flush()
