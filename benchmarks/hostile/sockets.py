"""Hostile connections: requests that no HTTP library sends, as bytes over plain sockets.

Invariant: every connection ends: by the gateway, or by this client when nothing has come for longer than the gateway's
timeouts allow. A fault is what the gateway answers, that it does not answer, or that it keeps the connection.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.hostile.answers import error_of, fault_of_error
from benchmarks.hostile.bodies import CHAT

LINGER_S = 10.0  # for which aiohttp reads on after it has refused half a body
BUSY_S = 5.0  # by which a busy machine may be late
DRIP_S = 0.1  # between two bytes of a slow client
NUM_PIPELINED = 100
BOMB_BYTES = 32 << 20  # of a body that is sent compressed: eight times what a gateway reads
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
LENGTH = re.compile(rb"^Content-Length: (\d+)\r$", re.MULTILINE | re.IGNORECASE)

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/x", "/dsd/fleet", "/v1/dsd/windows",
    "/openapi.json", "/healthz", "/readyz", "/health", "/metrics", "/", "/nothing", "/v1/models/", "//", "/%00", "/%ff",
    "/..;/", "/v1/models/%2e%2e%2fetc", "/v1/chat/completions?a=b", "/v1/models/" + "a" * 7000,
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW", "get")
PLAIN = ("/healthz", "/readyz", "/health", "/metrics")  # endpoints of the runtime


@dataclass(frozen=True, slots=True)
class HostileConnection:
    """What one connection sends, and how. drip: byte by byte. half: the client ends its side and reads on. reset: the
    client breaks the connection off. least: answers that must come; 0 where nobody can tell what is asked. waits: the
    gateway waits for the rest of a body, and then lingers."""

    name: str
    raw: bytes
    drip: bool = False
    half: bool = False
    reset: bool = False
    least: int = 1
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back. end: "closed" by the gateway, "left" by this client after its patience. silence_s: the longest
    time in which nothing came."""

    statuses: tuple[int, ...]
    end: str
    silence_s: float = 0.0
    fault: str | None = None

    @property
    def kind(self) -> str:
        """For counts."""
        statuses = sorted({str(status) for status in self.statuses}) or ["no answer"]
        return f"{', '.join(statuses)}, {self.end}"


def connections(model: str) -> Iterator[HostileConnection]:
    """All kinds."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
    whole = request("POST", CHAT, body)
    models = request("GET", "/v1/models")
    for method in METHODS:
        for route in ROUTES:
            yield HostileConnection(f"{method} {route[:40]}", request(method, route, close=True))
    yield from _bad_heads(whole)
    yield from _bad_lengths(body)
    yield from _bad_chunks()
    yield from _bad_encodings(body)
    for name, raw in {
        "nothing": b"",
        "half a head": models[:-8],
        "half a body": whole[:-8],
        "a request": whole,
    }.items():
        # A client that has ended its side counts as gone: its request is given up.
        yield HostileConnection(f"{name}, and a half-closed socket", raw, half=True, least=0)
        yield HostileConnection(f"{name}, and a reset", raw, reset=True, least=0)
    yield HostileConnection("a connection that says nothing", b"", least=0)
    yield HostileConnection(
        "a head byte by byte", request("GET", "/v1/models", headers=(("X-A", "a" * 4000),)), drip=True, least=0
    )
    yield HostileConnection("a body byte by byte", request("POST", CHAT, body + b" " * 4000), drip=True, waits=True)
    yield HostileConnection("half a head and silence", models[:-8], least=0)
    yield HostileConnection("half a body and silence", whole[:-8], waits=True)
    yield HostileConnection("pipelined reads", models * NUM_PIPELINED, least=NUM_PIPELINED)
    yield HostileConnection("pipelined wrong bodies", request("POST", CHAT, b"{") * NUM_PIPELINED, least=NUM_PIPELINED)
    yield HostileConnection("pipelined requests", whole * 8, least=8)
    yield HostileConnection("a request and garbage behind it", whole + b"\x00\xff" * 500)


def request(
    method: str, route: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = (), *, close: bool = False
) -> bytes:
    """The bytes of a request with a correct length."""
    lines = [f"{method} {route} HTTP/1.1", "Host: gateway", *(f"{name}: {value}" for name, value in headers)]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _bad_heads(whole: bytes) -> Iterator[HostileConnection]:
    def get(*headers: tuple[str, str]) -> bytes:
        return request("GET", "/v1/models", headers=headers, close=True)

    for name, raw in {
        "a header of 1 MB": get(("X-A", "a" * (1 << 20))),
        "a header without end": get(("X-A", "a" * (1 << 20)))[: 1 << 19],
        "10,000 headers": get(*((f"X-{n}", "a") for n in range(10_000))),
        "a method of 1 MB": b"A" * (1 << 20) + whole,
        "a path of 1 MB": request("GET", "/" + "a" * (1 << 20)),
        "a header's name with spaces": get(("X A ", "a")),
        "a header without a colon": b"GET /v1/models HTTP/1.1\r\nHost\r\n\r\n",
        "folded headers": b"GET /v1/models HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "zero bytes in a header": get(("X-A", "a\0b")),
        "bytes above ASCII in a header": get(("Authorization", "Bearer \xff\xfe")),
        "no host": b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
        "two hosts": get(("Host", "other")),
        "bare line feeds": b"GET /v1/models HTTP/1.1\nHost: a\n\n",
        "HTTP/9.9": b"GET /v1/models HTTP/9.9\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
        "TLS": bytes.fromhex("1603010200010001fc0303") + b"\xaa" * 500,
        "an absolute address": request("GET", "http://elsewhere/v1/models", close=True),
        "an asterisk": request("OPTIONS", "*", close=True),
        "a tunnel": request("CONNECT", "elsewhere:443", close=True),
        "an upgrade to a socket": get(("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "a")),
        "an upgrade to HTTP/2": get(("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")),
        "an expectation": request("POST", CHAT, b"{}", (("Expect", "a miracle"),), close=True),
        "a range": get(("Range", "bytes=0-0,5-1")),
        "a broken cookie": get(("Cookie", "a=\x01;;=;" * 100)),
        "a broken type": request("POST", CHAT, b"{}", (("Content-Type", "a/b; charset=\x02"),), close=True),
        "bytes alone": bytes(range(256)) * 40,
    }.items():
        yield HostileConnection(name, raw)
    yield HostileConnection("HTTP/0.9", b"GET /v1/models\r\n\r\n", least=0)  # it is closed: answers have no head there


def _bad_lengths(body: bytes) -> Iterator[HostileConnection]:
    def post(*lines: str) -> bytes:
        return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: gateway", *lines, "", ""]).encode() + body

    for length in ("-1", "+5", "0x10", "1e3", "", "a", "9" * 40, str(1 << 63), str((1 << 64) - 1), "5, 5", " 5 5"):
        waits = length == str(1 << 63)
        yield HostileConnection(f"length {length[:20]!r}", post(f"Content-Length: {length}"), waits=waits)
    yield HostileConnection("too great a length", post(f"Content-Length: {len(body) + 1000}"), waits=True)
    yield HostileConnection("too small a length", post(f"Content-Length: {len(body) - 10}"))
    yield HostileConnection("no length", post())
    yield HostileConnection("two lengths", post("Content-Length: 5", "Content-Length: 6"))
    yield HostileConnection("length and chunks", post("Content-Length: 5", "Transfer-Encoding: chunked"))
    yield HostileConnection("an unknown transfer", post("Transfer-Encoding: gzip, identity"))
    yield HostileConnection("a transfer in disguise", post("Transfer-Encoding: \x0bchunked"))
    yield HostileConnection("a length of terabytes", post(f"Content-Length: {1 << 42}"), waits=True)


def _bad_chunks() -> Iterator[HostileConnection]:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for name, chunks in {
        "no number": b"zz\r\nab\r\n",
        "a negative number": b"-5\r\nab\r\n",
        "too great a number": b"f" * 40 + b"\r\nab\r\n",
        "too small a number": b"1\r\nabcdef\r\n0\r\n\r\n",
        "no end": b"5\r\nabcde\r\n",
        "an extension of 1 MB": b"1;" + b"a" * (1 << 20) + b"\r\na\r\n0\r\n\r\n",
        "a trailer of 1 MB": b"1\r\na\r\n0\r\nX-A: " + b"a" * (1 << 20) + b"\r\n\r\n",
        "100,000 of a byte": b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n",
        "bytes": bytes(range(256)) * 10,
    }.items():
        yield HostileConnection(f"chunks: {name}", head + chunks, waits=name == "no end")


def _bad_encodings(body: bytes) -> Iterator[HostileConnection]:
    def post(encoding: str, raw: bytes) -> bytes:
        return request("POST", CHAT, raw, (("Content-Encoding", encoding),), close=True)

    bomb = b'{"user":"' + b"a" * BOMB_BYTES + b'"}'
    for name, raw in {
        "no gzip": post("gzip", body),
        "half a gzip": post("gzip", gzip.compress(body * 100)[:60]),
        "much in a gzip": post("gzip", gzip.compress(bomb, 1)),
        "much in a deflate": post("deflate", zlib.compress(bomb, 1)),
        "an unknown encoding": post("rot13", body),
        "no brotli": post("br", body),
        "no zstandard": post("zstd", body),
        "several encodings": post("gzip, gzip", body),
    }.items():
        yield HostileConnection(f"encoding: {name}", raw)


# --- sending ---------------------------------------------------------------------------------------------------------


def allowed_s(connection: HostileConnection, timeout_s: float) -> float:
    """How long nothing may come. timeout_s: the gateway's, for idle connections and for bodies."""
    return timeout_s + BUSY_S + (LINGER_S if connection.waits else 0.0)


async def attack(url: str, connection: HostileConnection, timeout_s: float) -> Outcome:
    """Sends one, and reads what comes until the gateway ends the connection, or is silent for too long."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    if connection.reset:
        on_close = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: a reset instead of an orderly end
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, on_close)
    sending = asyncio.create_task(_send(writer, connection))
    received, end, silence_s, now = bytearray(), "closed", 0.0, time.monotonic
    try:
        if connection.reset:
            await sending
        while not connection.reset:
            began = now()
            try:
                async with asyncio.timeout(allowed_s(connection, timeout_s)):
                    piece = await reader.read(1 << 16)
            finally:
                silence_s = max(silence_s, now() - began)
            if not piece:
                break
            received += piece
    except TimeoutError:
        end = "left"
    except (ConnectionError, OSError):
        end = "reset"
    finally:
        sending.cancel()
        writer.transport.abort()
        await asyncio.wait({sending})
    answers = list(answers_in(bytes(received)))
    statuses = tuple(status for status, _ in answers)
    return Outcome(statuses, end, silence_s, _fault_of(connection, answers, end))


async def _send(writer: asyncio.StreamWriter, connection: HostileConnection) -> None:
    with suppress(ConnectionError, OSError):
        if connection.drip:
            head, end, body = connection.raw.partition(b"\r\n\r\n")
            writer.write(head + end if body else b"")
            for byte in body or head + end:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(DRIP_S)
        else:
            writer.write(connection.raw)
            await writer.drain()
        if connection.half:
            writer.write_eof()


def _fault_of(connection: HostileConnection, answers: list[tuple[int, bytes]], end: str) -> str | None:
    if end == "left":
        return "the gateway keeps the connection"
    if len(answers) < connection.least:
        return f"{len(answers)} answers to {connection.least} requests"
    for status, body in answers:
        error = error_of(body)
        if status >= 500 and status not in (503, 504):
            return f"status {status}"
        if status >= 400 and error and (fault := fault_of_error(status, error)):
            return fault
        if status >= 400 and not error and not _is_plain(connection, status):
            return f"status {status} without an error object"
    return None


def _is_plain(connection: HostileConnection, status: int) -> bool:
    """Answers in other shapes: of the HTTP parser to what is no HTTP, of the runtime's endpoints, and to HEAD."""
    return status == 400 or connection.name.startswith(
        ("HEAD", *(f"{method} {path}" for method in METHODS for path in PLAIN))
    )


def answers_in(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Status and body of the answers in a stream of bytes, as far as each tells its length."""
    while (head_end := received.find(b"\r\n\r\n")) >= 0 and (status := _STATUS.match(received)):
        length = LENGTH.search(received[: head_end + 2])
        size = int(length[1]) if length else len(received)
        body = received[head_end + 4 :][:size]
        yield int(status[1]), body
        received = received[head_end + 4 + size :]
