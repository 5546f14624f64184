"""A TCP relay that emulates a distant NATS link: python -m benchmarks.harness.relay --help.

Invariant: every byte arrives once, in order, at the time that link.py gives. When one side closes, the bytes that it
sent still arrive, and then the relay closes the other side.

The timers of common event loops round up to whole milliseconds; `precise_loop` uses select(2), which does not.
"""

from __future__ import annotations

import asyncio
import selectors
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from benchmarks.harness.files import read_result
from benchmarks.harness.link import SEGMENT_BYTES, EmulatedLink, LinkConditions

CONNECT_S = 5.0
MAX_IN_FLIGHT = 1 << 14  # segments in one direction; the relay then stops reading
READY_LINE = "relay is ready"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop with timers that are late by much less than a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    @classmethod
    def of_url(cls, url: str) -> Address:
        """Parses nats://host:port. Raises ValueError."""
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise ValueError(f"address must be nats://host:port, got {url!r}")
        return cls(parts.hostname, parts.port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RelaySegment:
    """Bytes in flight and their arrival time; no bytes: end of stream."""

    due: float
    data: bytes


class Relay:
    """Forwards connections from a port to `target`. An async context manager."""

    def __init__(
        self, target: Address, conditions: LinkConditions, seed: int = 1, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.port = port  # 0: the relay sets it to a free port when it starts
        self._host = host
        self.links: list[EmulatedLink] = []  # two for each connection: to the target and back
        self.target = target
        self._conditions = conditions
        self._seed = seed
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, self._host, self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def change(self, conditions: LinkConditions) -> None:
        """Of all links, for what is sent from now on."""
        self._conditions = conditions
        for link in self.links:
            link.conditions = conditions

    def _new_link(self) -> EmulatedLink:
        self.links.append(EmulatedLink(self._conditions, self._seed + len(self.links)))
        return self.links[-1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection. The stream's protocol owns the task."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(self.target.host, self.target.port)
            try:
                there, back = self._new_link(), self._new_link()
                await _first_of(_carry(reader, far_writer, there), _carry(far_reader, writer, back))
            finally:
                far_writer.close()
        except (OSError, TimeoutError) as error:
            print(f"cannot reach {self.target}: {error!r}", flush=True)
        except asyncio.CancelledError:
            pass  # the relay stops; asyncio would log a raised error
        finally:
            self._connections.discard(task)
            writer.close()


async def _first_of(*jobs: Coroutine[None, None, None]) -> None:
    """Returns when one job returns, and cancels the others."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: EmulatedLink) -> None:
    """Carries one direction until its source closed and all bytes arrived, or until the receiver is gone."""
    in_flight: asyncio.Queue[RelaySegment] = asyncio.Queue(MAX_IN_FLIGHT)
    delivery = asyncio.create_task(_deliver(in_flight, writer))
    clock = asyncio.get_running_loop().time
    try:
        data = b"first"
        while data and not delivery.done():
            try:
                data = await reader.read(SEGMENT_BYTES)
            except ConnectionError:
                data = b""
            await in_flight.put(RelaySegment(link.send(clock(), len(data)), data))
        await asyncio.wait({delivery})
    finally:
        delivery.cancel()
        await asyncio.gather(delivery, return_exceptions=True)


async def _deliver(in_flight: asyncio.Queue[RelaySegment], writer: asyncio.StreamWriter) -> None:
    clock = asyncio.get_running_loop().time
    while (segment := await in_flight.get()).data:
        await asyncio.sleep(segment.due - clock())  # a due segment only yields to the loop
        writer.write(segment.data)
        try:
            await writer.drain()
        except ConnectionError:
            return


async def _run(relay: Relay, file: Path | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if file is not None:
        loop.add_signal_handler(signal.SIGHUP, lambda: relay.change(read_result(file, LinkConditions)))
    async with relay:
        print(f"{READY_LINE} on port {relay.port}", flush=True)
        await stop.wait()
    num_stalls = sum(link.num_stalls for link in relay.links)
    print(f"{sum(link.num_segments for link in relay.links)} segments carried, {num_stalls} stalled", flush=True)


@app.command()
def main(
    target: Annotated[str, typer.Option("--to", help="Target of connections, such as nats://127.0.0.1:4222.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port to listen on; 0: a free one.")] = 0,
    rtt_ms: Annotated[float, typer.Option(min=0, help="Round trip to add, half in each direction.")] = 0.0,
    jitter_ms: Annotated[float, typer.Option(min=0, help="Maximum jitter; segments keep their order.")] = 0.0,
    bandwidth_mbit: Annotated[float, typer.Option(min=0, help="Limit in each direction, Mbit/s; 0: none.")] = 0.0,
    stall_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of segments that are retransmitted.")] = 0.0,
    stall_ms: Annotated[float, typer.Option(min=0, help="Delay of a retransmitted segment.")] = 200.0,
    seed: Annotated[int, typer.Option(help="Seed of jitter and stalls.")] = 1,
    changed: Annotated[
        Path | None, typer.Option("--conditions", help="JSON file with new conditions, read on each SIGHUP.")
    ] = None,
) -> None:
    """Forwards TCP connections over an emulated link with delay, jitter, bandwidth limit and losses."""
    try:
        address = Address.of_url(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--to") from None
    conditions = LinkConditions(rtt_ms / 2, jitter_ms, bandwidth_mbit, stall_rate, stall_ms)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_run(Relay(address, conditions, seed, port), changed))


if __name__ == "__main__":
    app()
