"""The bus over core NATS (docs/protocol.md, "The bus").

Invariant: nothing that a peer or the server does ends the client's loops unnoticed. A lost connection is retried for
ever, `lost` reports one that is closed for good, and every refusal, drop and failed attempt is counted and logged.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable
from typing import Any, NoReturn

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription
from nats.aio.transport import WebSocketTransport

from shared.bus.bus import ABSENT, Handler, Receiver, Subscription
from shared.bus.parts import PART_BYTES, split
from shared.protocol.messages import Message, encode
from shared.protocol.subjects import verb
from shared.runtime.config import ServiceSettings, is_pem
from shared.runtime.metrics import BusMetrics

PING_INTERVAL_S = 5  # with MAX_PINGS, a half-open link is detected in 15 s
MAX_PINGS = 2
CONNECT_TIMEOUT_S = 5
FLUSH_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 5
OUTBOUND_BYTES = 8 << 20  # unsent bytes above which publish drops, so that it never waits for a slow link
WEB_SCHEMES = ("ws", "wss")
LOG_INTERVAL_S = 5.0  # between two log lines of one kind
CLOSED = (OSError, RuntimeError)  # of a write to a connection that has ended: by asyncio, and by uvloop

_DENIED_SUBSCRIPTION = re.compile(r'permissions violation for subscription to "([^"]+)"', re.IGNORECASE)

log = structlog.get_logger(__name__)


class BusLost(ConnectionError):
    """The server closed the connection for good: the client does not reconnect."""


class _WebTransport(WebSocketTransport):
    """nats-py's, through the proxy that the environment names for https://."""

    def __init__(self) -> None:
        super().__init__()
        self._client._trust_env = True

    async def connect_tls(self, uri: Any, *args: Any, **options: Any) -> None:
        where = uri if isinstance(uri, str) else uri._replace(scheme="https")
        await super().connect_tls(where, *args, **options)

    async def abandon(self) -> None:
        """Closes it without a word to the server."""
        await self._client.close()


class BusClient(Client):
    """nats-py's client with five changes.

    Neither a message that it can't parse nor the answer to a ping that was given up ends its reading loop. If TLS is
    required and the server offers none, it disconnects before it sends credentials. Messages go to their receivers
    as they are read, without a queue and a task for each subscription. Over a WebSocket it gives up a connection that
    is not made in time, goes through the proxy that the environment names, and stays with the addresses it was given:
    nats-py takes those that a server tells for TCP ones.
    """

    def __init__(self, metrics: BusMetrics) -> None:
        super().__init__()
        self._metrics = metrics
        self.needs_tls = False  # for nats:// addresses too
        self._receivers: dict[int, Receiver] = {}  # by subscription id

    async def receive(self, pattern: str, receiver: Receiver) -> NatsSubscription:
        """Subscribes; the receiver gets each packet at once."""
        self._receivers[self._sid + 1] = receiver  # `subscribe` gives out this id before it waits for anything
        return await self.subscribe(pattern)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._receivers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Checks the server's greeting, which comes in clear: a man in the middle could drop TLS from it."""
        scheme = self._current_server.uri.scheme if self._current_server else ""
        if scheme in WEB_SCHEMES:
            info.pop("connect_urls", None)
        wants_tls = scheme == "tls" or (self.needs_tls and scheme == "nats")
        if initial_connection and wants_tls and not info.get("tls_required"):
            raise nats.errors.Error("the server offers no TLS, which the settings require")
        await super()._process_info(info, initial_connection=initial_connection)

    async def _connect_to_server(self, server: Any) -> None:
        if server.uri.scheme not in WEB_SCHEMES:
            return await super()._connect_to_server(server)
        if isinstance(self._transport, _WebTransport) and self._transport:  # it failed after it was connected
            await self._transport.abandon()
        self._transport = transport = _WebTransport()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await super()._connect_to_server(server)
        except BaseException:
            await transport.abandon()
            self._transport = None
            raise

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        receiver = self._receivers.get(sid)
        if receiver is None:  # unsubscribed
            return
        try:
            status = (await self._process_headers(headers) or {}).get("Status") if headers else None
            if status == "503":
                receiver.receive_absent(subject.decode())
            else:
                receiver.receive(subject.decode(), data)
        except (UnicodeDecodeError, IndexError, ValueError) as error:  # of a subject or header, which any peer may send
            self._metrics.dropped.labels("malformed").inc()
            log.debug("unreadable message dropped", subject=repr(subject), reason=repr(error))

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # its flush has timed out
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class _Subscription:
    """A subscription that `close` drains while it is live."""

    def __init__(self, subscription: NatsSubscription, live: set[NatsSubscription]) -> None:
        self._subscription = subscription
        self._live = live

    async def unsubscribe(self) -> None:
        if self._subscription in self._live:
            self._live.remove(self._subscription)
            await self._subscription.unsubscribe()


class NatsBus:
    """The Bus over one NATS connection."""

    def __init__(self, metrics: BusMetrics, on_state: Callable[[bool], None]) -> None:
        self._client = BusClient(metrics)
        self._metrics = metrics
        self._on_state = on_state
        self._subscriptions: set[NatsSubscription] = set()
        self._denied: set[str] = set()
        self._logged_at: dict[str, float] = {}
        self._reconnect_wait_s = random.uniform(0.25, 1.0)  # random: a fleet must not reconnect at once
        self._closing = False
        self._lost = asyncio.Event()

    async def connect(self, settings: ServiceSettings, instance_id: str) -> None:
        """Retries until connected; each failure is counted and logged."""
        self._client.needs_tls = bool(settings.nats_ca)
        await self._client.connect(
            **access_options(settings),
            name=instance_id,
            max_reconnect_attempts=-1,
            reconnect_time_wait=self._reconnect_wait_s,  # type: ignore[arg-type]  # it takes floats too
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_PINGS,
            pending_size=OUTBOUND_BYTES + PART_BYTES,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_closed,
        )
        log.info("bus connected", server=self._server)
        self._on_state(True)

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        if absent_to is not None and not verb(absent_to).startswith(ABSENT):
            raise ValueError(f"absent_to {absent_to!r} needs a verb that begins with {ABSENT!r}")
        packets = split(encode(message))
        if not self._client.is_connected:
            return self._drop("not connected")
        if self._client.pending_data_size + sum(map(len, packets)) > OUTBOUND_BYTES:
            return self._drop("outbound full")
        try:
            for index, packet in enumerate(packets):
                await self._client.publish(subject, packet, reply=absent_to if absent_to and index == 0 else "")
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError, OSError):
            return self._drop("not connected")
        self._metrics.published_as(type(message)).inc()
        return None

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        if self._closing:
            raise ConnectionError("the bus is closed")
        subscription = await self._client.receive(pattern, Receiver(handler, self._metrics))
        try:
            await self._settle()  # the server has it before anything else is sent
        except nats.errors.Error as error:
            log.warning(
                "subscription not confirmed; it is repeated after a reconnect", pattern=pattern, error=repr(error)
            )
        if pattern in self._denied:  # the refusal arrives before the answer to the flush
            await subscription.unsubscribe()
            raise PermissionError(f"the NATS server denies this user the subscription {pattern!r}")
        self._subscriptions.add(subscription)
        return _Subscription(subscription, self._subscriptions)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for subscription in list(self._subscriptions):  # Client.drain can't be cancelled
                    await subscription.drain()  # type: ignore[no-untyped-call]
                await self._settle()
        except (nats.errors.Error, *CLOSED, TimeoutError) as error:
            log.warning("bus not drained", error=repr(error))
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()
        except (*CLOSED, TimeoutError, TypeError) as error:  # TypeError: Python 3.13's transport, where it has ended
            log.warning("bus connection not closed cleanly", error=repr(error))

    async def lost(self) -> NoReturn:
        """Waits until the connection is closed for good, then raises BusLost."""
        await self._lost.wait()
        raise BusLost(f"the NATS server closed the connection: {self._client.last_error or 'no reason given'}")

    @property
    def _server(self) -> str:
        url = self._client.connected_url  # its netloc may hold a password
        return f"{url.hostname}:{url.port}" if url else "none"

    async def _settle(self) -> None:
        """Returns when the server has received all that was sent before."""
        # Client.flush sends its ping before what is still buffered; only a second ping comes after that. It runs in a
        # task because wait_for may swallow a cancellation before Python 3.12.
        for _ in range(2):
            flush = asyncio.create_task(self._client.flush(timeout=FLUSH_TIMEOUT_S))
            try:
                await asyncio.wait({flush})
            finally:
                flush.cancel()
            flush.result()

    def _drop(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc()

    async def _on_error(self, error: Exception) -> None:
        kind, text = "connection", str(error) or repr(error)
        if "permissions violation" in text.lower():
            kind = "permission violation"
            self._denied.update(_DENIED_SUBSCRIPTION.findall(text))
        self._metrics.errors.labels(kind).inc()
        self._warn(f"bus: {kind}", error=text)

    async def _on_disconnect(self) -> None:
        if not self._closing:
            log.warning("bus disconnected, trying to reconnect")
        self._on_state(False)

    async def _on_reconnect(self) -> None:
        self._metrics.reconnects.inc()
        log.info("bus reconnected", server=self._server)
        self._on_state(True)

    async def _on_closed(self) -> None:
        if not self._closing:
            self._lost.set()

    def _warn(self, event: str, **about: Any) -> None:
        """Logs at most one line for each event and interval: a flood on the bus must not flood the log."""
        now = time.monotonic()
        if now - self._logged_at.get(event, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_at[event] = now
            log.warning(event, **about)


def access_options(settings: ServiceSettings) -> dict[str, Any]:
    """Options of nats-py's connect: where the server is, who the user is, whom to trust."""
    return {
        "servers": [url.strip() for url in settings.nats_url.split(",")],
        "user": settings.nats_user or None,
        "password": settings.nats_password.get_secret_value() or None,
        "nkeys_seed": settings.nats_nkey_seed or None,
        "nkeys_seed_str": settings.nats_key.get_secret_value() or None,
        "tls": _tls(settings.nats_ca),
    }


def _tls(ca: str) -> ssl.SSLContext | None:
    """None: nats-py's own, with the system's CAs."""
    if not ca:
        return None
    return ssl.create_default_context(cadata=ca) if is_pem(ca) else ssl.create_default_context(cafile=ca)


async def connect(
    settings: ServiceSettings,
    instance_id: str,
    metrics: BusMetrics,
    on_state: Callable[[bool], None] = lambda connected: None,
) -> NatsBus:
    """A connected bus. `on_state(is_connected)` is called whenever that changes."""
    bus = NatsBus(metrics, on_state)
    await bus.connect(settings, instance_id)
    return bus
