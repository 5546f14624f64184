"""Bodies as bad as can be, and a loop that is watched while they are served."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from benchmarks.hostile.bad_bodies import MAX_BYTES, bad_bodies
from benchmarks.hostile.worst_bodies import LIMIT_MS, LoopWatch, measure
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


async def test_no_body_holds_the_loop_for_ten_times_the_limit_or_ends_otherwise_than_refused_or_unserved(
    tmp_path: Path,
) -> None:
    """The shortest of three holds: another program may take the core during one. A body that is read without bounds
    holds the loop for a second each time."""
    costs = await measure(make_folder(tmp_path / "target"), 3)
    assert {cost.name: cost.held_ms for cost in costs if cost.held_ms > 10 * LIMIT_MS} == {}
    assert {cost.status for cost in costs} == {400, 503}, "503: no verifier takes what passed all checks"
    assert sum(cost.status == 503 for cost in costs) < 10


@pytest.mark.long
async def test_no_body_holds_the_loop_for_the_limit_with_the_tokenizer_of_the_default_pair(
    default_models: Path,
) -> None:
    costs = await measure(default_models / "target", 5)
    assert {cost.name: cost.held_ms for cost in costs if cost.held_ms > LIMIT_MS} == {}
