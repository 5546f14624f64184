"""The relay keeps the conditions of its link: the schedule in virtual time, and real sockets."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

from benchmarks.harness.link import SEGMENT_BYTES, EmulatedLink, LinkConditions
from benchmarks.harness.relay import Address, Relay, precise_loop

Result = TypeVar("Result")

NUM_ECHOES, NUM_TRIES = 240, 4
PATIENCE_S = 20.0


def lateness_ms(conditions: LinkConditions, sent_at: list[float], num_bytes: int = 100, seed: int = 1) -> np.ndarray:
    """Delay of each segment."""
    link = EmulatedLink(conditions, seed)
    return np.array([(link.send(at, num_bytes) - at) * 1e3 for at in sent_at])


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_without_conditions_a_segment_arrives_at_once() -> None:
    assert lateness_ms(LinkConditions(), [0.5, 1.0, 1.0]).tolist() == [0, 0, 0]


def test_a_round_trip_is_halved_between_the_directions() -> None:
    assert lateness_ms(LinkConditions.of_round_trip(30), [1.0]) == pytest.approx([15])


def test_jitter_spreads_evenly_and_never_reorders() -> None:
    apart = lateness_ms(LinkConditions(delay_ms=10, jitter_ms=8), [float(i) for i in range(4000)])
    assert 10 <= apart.min() < 10.1
    assert 17.9 < apart.max() <= 18
    assert np.mean(apart) == pytest.approx(14, abs=0.2)
    link = EmulatedLink(LinkConditions(delay_ms=10, jitter_ms=8), seed=1)
    arrivals = [link.send(i * 1e-4, 100) for i in range(4000)]
    assert arrivals == sorted(arrivals)


def test_a_burst_arrives_at_the_rate_of_the_bandwidth() -> None:
    link = EmulatedLink(LinkConditions(bandwidth_mbit=8), seed=1)  # a megabyte a second
    assert [link.send(0.0, 1000) for _ in range(3)] == pytest.approx([0.001, 0.002, 0.003])
    assert link.send(5.0, 1000) == pytest.approx(5.001)  # an idle link saves no bandwidth


def test_stalls_have_their_rate_and_length_and_later_segments_wait() -> None:
    conditions = LinkConditions(delay_ms=5, stall_rate=0.1, stall_ms=200)
    apart = lateness_ms(conditions, [float(i) for i in range(10_000)])
    assert np.unique(apart.round(6)).tolist() == [5, 205]
    assert np.mean(apart > 100) == pytest.approx(0.1, abs=0.01)
    link = EmulatedLink(LinkConditions(stall_rate=1, stall_ms=200), seed=1)
    assert [link.send(at, 100) for at in (0.0, 0.1)] == pytest.approx([0.2, 0.3])
    assert link.num_stalls == 2
    behind = lateness_ms(conditions, [i * 1e-3 for i in range(10_000)])
    assert np.mean(behind > 5.1) > 0.5, "with a segment each millisecond most stand behind one that is sent again"


def test_the_seed_determines_the_delays() -> None:
    conditions = LinkConditions(jitter_ms=5, stall_rate=0.1)
    times = [i * 0.01 for i in range(100)]
    assert (lateness_ms(conditions, times, seed=3) == lateness_ms(conditions, times, seed=3)).all()
    assert (lateness_ms(conditions, times, seed=3) != lateness_ms(conditions, times, seed=4)).any()


@pytest.mark.parametrize("bad", [{"delay_ms": -1.0}, {"stall_rate": 1.5}, {"jitter_ms": float("nan")}])
def test_conditions_out_of_bounds_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        LinkConditions(**bad)


# --- sockets ----------------------------------------------------------------------------------------------------------


@dataclass
class Ends:
    """Both ends of a connection through the relay."""

    relay: Relay
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    far_reader: asyncio.StreamReader
    far_writer: asyncio.StreamWriter

    async def echo(self) -> float:
        """Round trip of a byte, in seconds."""
        started = time.perf_counter()
        self.writer.write(b"?")
        self.far_writer.write(await self.far_reader.readexactly(1))
        await self.reader.readexactly(1)
        return time.perf_counter() - started


@asynccontextmanager
async def connected(conditions: LinkConditions, is_direct: bool = False) -> AsyncIterator[Ends]:
    """is_direct: without the relay."""
    taken: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: taken.put_nowait(ends), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(PATIENCE_S), Relay(Address("127.0.0.1", port), conditions) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", port if is_direct else relay.port)
        ends = Ends(relay, reader, writer, *await taken.get())
        yield ends
        for each in (ends.writer, ends.far_writer):
            each.close()
    server.close()


def run(job: Coroutine[Any, Any, Result]) -> Result:
    """Runs a job on the kind of loop that the relay uses."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(job)


def test_the_added_round_trip_is_exact_to_a_fraction_of_a_millisecond() -> None:
    async def shortest_ms(is_direct: bool) -> float:
        async with connected(LinkConditions.of_round_trip(6.6), is_direct) as ends:  # 3.3 ms: no whole milliseconds
            return min([await ends.echo() for _ in range(NUM_ECHOES)]) * 1e3  # a busy machine delays others

    added = run(shortest_ms(is_direct=False)) - run(shortest_ms(is_direct=True))
    assert 6.5 < added < 7.2


def test_bytes_arrive_in_order_whatever_jitter_and_stalls_do() -> None:
    sent = random.Random(1).randbytes(200_000)

    async def carry() -> bytes:
        async with connected(LinkConditions(1, jitter_ms=3, stall_rate=0.02, stall_ms=5)) as ends:
            ends.writer.write(sent)
            ends.writer.write_eof()
            arrived = await ends.far_reader.read(-1)
            assert ends.relay.links[0].num_segments > len(sent) / SEGMENT_BYTES
            assert ends.relay.links[0].num_stalls > 0
            return arrived

    assert run(carry()) == sent


def test_the_bandwidth_is_within_a_few_per_cent_of_its_limit() -> None:
    num_bytes, megabytes_per_s = 300_000, 1.0

    async def seconds() -> float:
        async with connected(LinkConditions(bandwidth_mbit=8 * megabytes_per_s)) as ends:
            started = time.perf_counter()
            ends.writer.write(bytes(num_bytes))
            await ends.far_reader.readexactly(num_bytes)
            return time.perf_counter() - started

    shortest = min(run(seconds()) for _ in range(NUM_TRIES))  # a busy machine delays others
    assert shortest == pytest.approx(num_bytes / 1e6 / megabytes_per_s, rel=0.08)


@pytest.mark.parametrize("closer", ["near", "far"])
def test_bytes_sent_before_a_close_arrive_and_then_the_other_side_is_closed(closer: str) -> None:
    async def close() -> bytes:
        async with connected(LinkConditions(delay_ms=20)) as ends:
            near = closer == "near"
            leaving, other = (ends.writer, ends.far_reader) if near else (ends.far_writer, ends.reader)
            leaving.write(b"last words")
            leaving.close()
            return await other.read(-1)

    assert run(close()) == b"last words"


def test_changed_conditions_hold_for_what_is_sent_from_then_on() -> None:
    async def stalls() -> list[int]:
        async with connected(LinkConditions()) as ends:
            found = []
            for conditions in (LinkConditions(), LinkConditions(stall_rate=1, stall_ms=1), LinkConditions()):
                ends.relay.change(conditions)
                await ends.echo()
                found.append(sum(link.num_stalls for link in ends.relay.links))
            return found

    assert run(stalls()) == [0, 2, 2]


def test_without_a_listener_the_connection_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    async def read() -> bytes:
        async with Relay(Address("127.0.0.1", 1), LinkConditions()) as relay, asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            arrived = await reader.read(-1)
            writer.close()
            return arrived

    assert run(read()) == b""
    assert "cannot reach" in capsys.readouterr().out
