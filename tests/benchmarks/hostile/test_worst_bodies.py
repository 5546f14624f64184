"""Bodies as bad as can be, and a loop that is watched while they are served."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks.hostile.bad_bodies import MAX_BYTES, bad_bodies
from benchmarks.hostile.worst_bodies import LoopWatch, measure
from tests.gateway.tiny import make_folder


def test_bodies_have_names_of_their_own_and_are_no_larger_than_a_gateway_reads() -> None:
    sizes = {body.name: len(body.raw) for body in bad_bodies()}
    assert len(sizes) == sum(1 for _ in bad_bodies())
    assert max(sizes.values()) <= MAX_BYTES
    assert sum(size > MAX_BYTES // 2 for size in sizes.values()) > 30


async def test_a_loop_that_computes_is_found_and_one_that_waits_is_not() -> None:
    watch = LoopWatch()
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0.01)
    time.sleep(0.3)  # noqa: ASYNC251  as other work of the machine does it
    await asyncio.sleep(0.01)
    assert watch.longest_s < 0.2
    began_s = time.process_time()
    while time.process_time() - began_s < 0.3:
        pass
    await asyncio.sleep(0.01)
    assert watch.longest_s > 0.25
    watching.cancel()


async def test_bodies_are_sent_to_a_gateway_that_refuses_them_or_finds_no_verifier(tmp_path: Path) -> None:
    costs = {}
    for name in ("open lists", "biases, as many", "a long user"):
        costs |= {cost.name: cost for cost in await measure(make_folder(tmp_path / name), 1, only=name)}
    assert [cost.status for cost in costs.values()] == [400, 400, 503]
