"""A gateway over HTTP: its models, its fleet, and answers as they stream.

Invariant: whoever leaves an answer early closes its connection, and with it the session; every failure is one of the
exceptions here and says what is wrong in one line.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import msgspec

from client.sse import EventParser, OversizeEvent
from client.wire import (
    NULL,
    ChatRequest,
    Chunk,
    ErrorBody,
    ErrorDetail,
    Fates,
    Fleet,
    Model,
    Models,
    Piece,
    Report,
    Usage,
)

CONNECT_S = 10.0
# The longest waits for the next bytes: of an answer above the 600 s after which a gateway gives one up by itself
# (DSD_REQUEST_TIMEOUT_S); until then it may have nothing to send, and says why in the end.
SILENCE_S = 660.0
LOOK_SILENCE_S = 120.0  # of all that no model has to compute
DONE = "[DONE]"
KEY_VARIABLE = "DSD_API_KEY"

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)  # what bytes that are no JSON raise

Body = TypeVar("Body")


class ClientError(Exception):
    """A request came to nothing."""


class Unreachable(ClientError):
    """Nobody answers at the address."""


class Refused(ClientError):
    """The server said no, with an HTTP status."""

    def __init__(self, status: int, detail: ErrorDetail) -> None:
        super().__init__(f"{detail.message} (status {status})")
        self.status = status
        self.param = detail.param
        self.code = detail.code


class BrokenOff(ClientError):
    """The answer ended before its end, or is none."""


class Answer:
    """One answer as far as it has come."""

    def __init__(self, response: aiohttp.ClientResponse, asked_at: float) -> None:
        self.text = ""
        self.finish: str | None = None
        self.raw_usage = NULL
        self.raw_dsd = NULL
        self.fates: dict[str, int] = {}  # number of pieces by fate, where the server tells
        self._window: int | None = None
        self._response = response
        self._asked_at = asked_at
        self._first_at: float | None = None
        self._last_at = asked_at

    @property
    def usage(self) -> Usage | None:
        """Counts of tokens; None where the server sent none."""
        return _read_unless_null(self.raw_usage, Usage)

    @property
    def report(self) -> Report | None:
        """What speculation did; None before the end, and from servers that know no `dsd`."""
        return _read_unless_null(self.raw_dsd, Report)

    @property
    def num_tokens(self) -> int:
        """Tokens so far: exact at the end; before that as many as pieces whose fate was told, about the same."""
        usage = self.usage
        return usage.completion_tokens if usage else sum(self.fates.values())

    @property
    def window(self) -> int | None:
        """The window of the pair that works on the answer, as it was told last."""
        report = self.report
        return report.window if report else self._window

    @property
    def acceptance(self) -> float | None:
        """The share of judged guesses that were right; before the end, of those that the text shows."""
        if report := self.report:
            return report.acceptance
        right, wrong = self.fates.get("accepted", 0), self.fates.get("recovered", 0)
        return right / (right + wrong) if right + wrong else None

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token: the server's figure, or what the client saw."""
        if report := self.report:
            return report.ttft_ms
        return None if self._first_at is None else (self._first_at - self._asked_at) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Time per token behind the first: the server's figure, or what the client has seen so far."""
        if report := self.report:
            return report.tpot_ms
        if self._first_at is None or self.num_tokens < 2 or self._last_at == self._first_at:
            return None
        return (self._last_at - self._first_at) * 1e3 / (self.num_tokens - 1)

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """The text as it comes; raises BrokenOff when it does not come to its end."""
        parser = EventParser()
        try:
            async for data in self._response.content.iter_any():
                for event in parser.feed(data):
                    if event == DONE:
                        return
                    if pieces := self._take(_read(event.encode(), Chunk)):
                        yield pieces
        except TimeoutError:
            raise BrokenOff(f"The answer broke off: nothing came for {SILENCE_S:g} s") from None
        except (aiohttp.ClientError, OversizeEvent) as error:
            raise BrokenOff(f"The answer broke off: {error}") from error
        raise BrokenOff("The answer broke off: the connection ended before it did")

    def _take(self, chunk: Chunk) -> list[Piece]:
        if chunk.error is not None:
            raise BrokenOff(f"The answer broke off: {chunk.error.message}")
        text = "".join(choice.delta.content or "" for choice in chunk.choices)
        for choice in chunk.choices:
            self.finish = choice.finish_reason or self.finish
        if chunk.usage != NULL:
            self.raw_usage = chunk.usage.copy()
        pieces = self._take_dsd(chunk.dsd) or ([Piece(text)] if text else [])
        if pieces:
            self.text += text
            self._last_at = time.monotonic()
            if self._first_at is None:
                self._first_at = self._last_at
        return pieces

    def _take_dsd(self, raw: msgspec.Raw) -> list[Piece]:
        """The chunk's pieces by fate. Its last `dsd` object is the report instead."""
        told = _read_unless_null(raw, Fates)
        if told is None:
            return []
        if not told.pieces:
            self.raw_dsd = raw.copy()
            return []
        if told.window is not None:
            self._window = told.window
        for piece in told.pieces:
            fate = piece.fate or "unknown"
            self.fates[fate] = self.fates.get(fate, 0) + 1
        return told.pieces


class Gateway:
    """A server of the OpenAI API at a base address, best a gateway of DSD."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address = address.rstrip("/").removesuffix("/v1")
        self._http = http

    async def models(self) -> list[Model]:
        return (await self._get("/v1/models", Models)).data

    async def fleet(self) -> Fleet:
        return _read(await self.raw_fleet(), Fleet)

    async def raw_fleet(self) -> bytes:
        """The fleet as the gateway tells it, as one line of JSON."""
        fleet = await self._fetch("/dsd/fleet")
        try:
            fleet.decode()
            return msgspec.json.format(fleet, indent=-1)
        except UNREADABLE as error:
            raise BrokenOff(f"{self.address} does not answer as a gateway: its fleet is no JSON") from error

    async def first_model(self) -> str:
        """The model to use when none is named."""
        models = await self.models()
        if not models:
            raise BrokenOff(f"{self.address} serves no model")
        return models[0].id

    @asynccontextmanager
    async def answer(self, request: ChatRequest) -> AsyncIterator[Answer]:
        """An answer under way, as long as the block lasts; raises ClientError at its beginning."""
        asked_at = time.monotonic()
        headers = {"Content-Type": "application/json"}
        body = msgspec.json.encode(request)
        async with self._request("POST", "/v1/chat/completions", self._http.timeout, body, headers) as response:
            yield Answer(response, asked_at)

    async def _get(self, path: str, kind: type[Body]) -> Body:
        return _read(await self._fetch(path), kind)

    async def _fetch(self, path: str) -> bytes:
        patience = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=LOOK_SILENCE_S)
        async with self._request("GET", path, patience) as response:
            try:
                return await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise BrokenOff(f"The answer to GET {path} broke off: {error}") from error

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        patience: aiohttp.ClientTimeout,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response, closed at the end; raises Refused, Unreachable, or BrokenOff where none begins."""
        url = self.address + path
        try:
            response = await self._http.request(method, url, data=data, headers=headers, timeout=patience)
        except aiohttp.InvalidURL as error:
            raise Unreachable(f"{self.address} is no address") from error
        except aiohttp.SocketTimeoutError as error:  # only of a connection that is there
            raise BrokenOff(f"{self.address} is connected, but gave no answer in {patience.sock_read:g} s") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"Can't connect to {self.address}: {_reason(error)}") from error
        async with response:
            if response.status != 200:
                raise await _refusal(response)
            yield response


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Gateway]:
    """A gateway to speak to; the API key in DSD_API_KEY, if there is one, is sent with every request."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    # A connection that was kept may have been closed meanwhile, which shows only when a request is lost on it.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http:
        yield Gateway(address, http)


async def _refusal(response: aiohttp.ClientResponse) -> Refused:
    """What the server said, in OpenAI's shape or not."""
    try:
        body = await response.read()
        return Refused(response.status, msgspec.json.decode(body, type=ErrorBody).error)
    except (aiohttp.ClientError, TimeoutError, *UNREADABLE):
        return Refused(response.status, ErrorDetail(response.reason or "No reason given"))


def _reason(error: Exception) -> str:
    """Why there is no connection, in the system's words."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or "no answer in time"


def _read_unless_null(raw: msgspec.Raw, kind: type[Body]) -> Body | None:
    return None if raw == NULL else _read(bytes(raw), kind)


def _read(data: bytes, kind: type[Body]) -> Body:
    """The JSON in `data`; raises BrokenOff."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise BrokenOff(f"The server's answer can't be read: {error}") from error
