"""Client of a gateway over HTTP: its models, its fleet, and streamed answers.

Invariant: leaving an answer early closes its connection, and with it the session. Every failure raises an exception of
this module, whose message is one line.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp
import msgspec

from client.sse import EventParser, OversizeEvent
from client.wire import (
    NULL,
    ChatRequest,
    Chunk,
    DrafterJoin,
    DsdPieces,
    DsdReport,
    ErrorDetail,
    ErrorReply,
    FleetStatus,
    Model,
    ModelList,
    TokenPiece,
    Usage,
)

CONNECT_S = 10.0
# Longest wait for the next bytes of an answer. Above the gateway's own limit (DSD_REQUEST_TIMEOUT_S, 600 s), so that
# the gateway's error arrives first.
SILENCE_S = 660.0
GET_SILENCE_S = 120.0  # the same for requests that need no model
DONE = "[DONE]"
KEY_VARIABLE = "DSD_API_KEY"

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)  # raised for bytes that are not valid JSON

Body = TypeVar("Body")


class ClientError(Exception):
    """A request has failed."""


class Unreachable(ClientError):
    """No server answers at the address."""


class RequestRefused(ClientError):
    """The server answered with an HTTP error status."""

    def __init__(self, status: int, detail: ErrorDetail) -> None:
        super().__init__(f"{detail.message} (status {status})")
        self.status = status
        self.param = detail.param
        self.code = detail.code


class BrokenOff(ClientError):
    """The answer is incomplete, or not an answer of this API."""


@dataclass(frozen=True, slots=True)
class Probe:
    """An answer with any status, and the time that it took. date: the server's clock, in Unix seconds, if it told."""

    status: int
    body: bytes
    date: float | None
    seconds: float


class StreamedAnswer:
    """One answer so far."""

    def __init__(self, response: aiohttp.ClientResponse, asked_at: float) -> None:
        self.text = ""
        self.finish: str | None = None
        self.raw_usage = NULL
        self.raw_dsd = NULL
        self.num_pieces: dict[str, int] = {}  # by source, where the server reports it
        self._window: int | None = None
        self._response = response
        self._asked_at = asked_at
        self._first_at: float | None = None
        self._last_at = asked_at

    @property
    def usage(self) -> Usage | None:
        """Counts of tokens; None before the end, or if the server sends none."""
        return _read_unless_null(self.raw_usage, Usage)

    @property
    def report(self) -> DsdReport | None:
        """What speculation did; None before the end, or if the server sends no `dsd` object."""
        return _read_unless_null(self.raw_dsd, DsdReport)

    @property
    def num_tokens(self) -> int:
        """Tokens so far: exact at the end; before it the number of pieces with a source, which is about the same."""
        usage = self.usage
        return usage.completion_tokens if usage else sum(self.num_pieces.values())

    @property
    def window(self) -> int | None:
        """The newest reported window of the pair that works on the answer."""
        report = self.report
        return report.window if report else self._window

    @property
    def acceptance(self) -> float | None:
        """As in DsdReport; before the end, accepted / (accepted + recovered) of the pieces so far."""
        if report := self.report:
            return report.acceptance
        right, wrong = self.num_pieces.get("accepted", 0), self.num_pieces.get("recovered", 0)
        return right / (right + wrong) if right + wrong else None

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token: the server's figure, else the client's."""
        if report := self.report:
            return report.ttft_ms
        return None if self._first_at is None else (self._first_at - self._asked_at) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Time per token after the first: the server's figure, else the client's so far."""
        if report := self.report:
            return report.tpot_ms
        if self._first_at is None or self.num_tokens < 2 or self._last_at == self._first_at:
            return None
        return (self._last_at - self._first_at) * 1e3 / (self.num_tokens - 1)

    async def pieces(self) -> AsyncGenerator[list[TokenPiece], None]:
        """The text as it comes. Raises BrokenOff if the stream ends early."""
        parser = EventParser()
        try:
            async for data in self._response.content.iter_any():
                for event in parser.feed(data):
                    if event == DONE:
                        return
                    if pieces := self._take(_read(event.encode(), Chunk)):
                        yield pieces
        except TimeoutError:
            raise BrokenOff(f"The answer broke off: no data for {SILENCE_S:g} s") from None
        except (aiohttp.ClientError, OversizeEvent) as error:
            raise BrokenOff(f"The answer broke off: {error}") from error
        raise BrokenOff("The answer broke off: the connection was closed early")

    def _take(self, chunk: Chunk) -> list[TokenPiece]:
        if chunk.error is not None:
            raise BrokenOff(f"The answer broke off: {chunk.error.message}")
        text = "".join(choice.delta.content or "" for choice in chunk.choices)
        for choice in chunk.choices:
            self.finish = choice.finish_reason or self.finish
        if chunk.usage != NULL:
            self.raw_usage = chunk.usage.copy()
        pieces = self._take_dsd(chunk.dsd) or ([TokenPiece(text)] if text else [])
        if pieces:
            self.text += text
            self._last_at = time.monotonic()
            if self._first_at is None:
                self._first_at = self._last_at
        return pieces

    def _take_dsd(self, raw: msgspec.Raw) -> list[TokenPiece]:
        """The pieces of a chunk's `dsd` object, or none: the last `dsd` object is the report."""
        dsd = _read_unless_null(raw, DsdPieces)
        if dsd is None:
            return []
        if not dsd.pieces:
            self.raw_dsd = raw.copy()
            return []
        if dsd.window is not None:
            self._window = dsd.window
        for piece in dsd.pieces:
            source = piece.source or "unknown"
            self.num_pieces[source] = self.num_pieces.get(source, 0) + 1
        return dsd.pieces


class GatewayClient:
    """Speaks to a gateway, or to another server of the OpenAI API, at a base address."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address = address.rstrip("/").removesuffix("/v1")
        self._http = http

    async def models(self) -> list[Model]:
        return _read(await self._fetch("/v1/models"), ModelList).data

    async def fleet(self) -> FleetStatus:
        return _read(await self.raw_fleet(), FleetStatus)

    async def raw_fleet(self) -> bytes:
        """The fleet as one line of JSON, unchanged."""
        fleet = await self._fetch("/dsd/fleet")
        try:
            fleet.decode()
            return msgspec.json.format(fleet, indent=-1)
        except UNREADABLE as error:
            raise BrokenOff(f"{self.address} is not a DSD gateway: its /dsd/fleet is not JSON") from error

    async def probe(self, path: str, *, key: str | None = None) -> Probe:
        """key: another API key than that of the client. Raises Unreachable or BrokenOff."""
        began = time.monotonic()
        patience = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=CONNECT_S)
        more = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with self._answered("GET", path, patience, more=more) as response:
            body, date = await response.read(), response.headers.get("Date")
            told = parsedate_to_datetime(date).timestamp() if date else None
            return Probe(response.status, body, told, time.monotonic() - began)

    async def drafter_join(self) -> DrafterJoin:
        return _read(await self._fetch("/v1/dsd/drafter"), DrafterJoin)

    async def first_model(self) -> str:
        """The first served model, used when the user names none."""
        models = await self.models()
        if not models:
            raise BrokenOff(f"{self.address} serves no model")
        return models[0].id

    @asynccontextmanager
    async def answer(self, request: ChatRequest) -> AsyncIterator[StreamedAnswer]:
        """An answer that streams during the block. Raises ClientError if it does not begin."""
        asked_at = time.monotonic()
        body = msgspec.json.encode(request)
        async with self._request("POST", "/v1/chat/completions", self._http.timeout, body) as response:
            yield StreamedAnswer(response, asked_at)

    async def _fetch(self, path: str) -> bytes:
        patience = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=GET_SILENCE_S)
        async with self._request("GET", path, patience) as response:
            try:
                return await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise BrokenOff(f"The answer to GET {path} broke off: {error}") from error

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, patience: aiohttp.ClientTimeout, data: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response, closed after the block. Raises RequestRefused, Unreachable or BrokenOff."""
        async with self._answered(method, path, patience, data) as response:
            if response.status != 200:
                raise await _refusal(response)
            yield response

    @asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        patience: aiohttp.ClientTimeout,
        data: bytes | None = None,
        more: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with any status, closed after the block. more: headers. Raises Unreachable or BrokenOff."""
        url, headers = self.address + path, {**({"Content-Type": "application/json"} if data else {}), **(more or {})}
        try:
            response = await self._http.request(method, url, data=data, headers=headers, timeout=patience)
        except aiohttp.InvalidURL as error:
            raise Unreachable(f"{self.address} is not a valid address") from error
        except aiohttp.SocketTimeoutError as error:  # raised only once connected
            raise BrokenOff(f"{self.address} is connected, but sent no answer in {patience.sock_read:g} s") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"Can't connect to {self.address}: {_reason(error)}") from error
        async with response:
            yield response


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[GatewayClient]:
    """A client for this address. Sends the API key in DSD_API_KEY, if set, with every request."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    # No keep-alive: the server may have closed an idle connection, which shows only when a request is lost on it.
    connector = aiohttp.TCPConnector(force_close=True)
    through_proxy = address.startswith("https://")  # that the environment names
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=through_proxy
    ) as http:
        yield GatewayClient(address, http)


async def _refusal(response: aiohttp.ClientResponse) -> RequestRefused:
    """The server's error, in OpenAI's shape or another."""
    try:
        body = await response.read()
        return RequestRefused(response.status, msgspec.json.decode(body, type=ErrorReply).error)
    except (aiohttp.ClientError, TimeoutError, *UNREADABLE):
        return RequestRefused(response.status, ErrorDetail(response.reason or "No reason given"))


def _reason(error: Exception) -> str:
    """The system's reason for a failed connection."""
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
