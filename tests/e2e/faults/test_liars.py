"""Drafters that lie, and drafters that are named but never send: nobody's text changes by a single token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from shared.protocol.subjects import new_instance_id
from tests.e2e.faults.liar import Liar, StubbornDrafter
from tests.e2e.harness import Cell, Generated, running

pytestmark = pytest.mark.timeout(600)

NUM_TOKENS = 24
LEASE_S = 3.0
SAMPLINGS = (Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=21))


async def answers(
    cell: Cell, prompts: Sequence[list[int]], drafter_ids: Sequence[str | None], sampling: Sampling, **options: object
) -> list[Generated]:
    """All prompts at once, each with its own drafter."""
    return await asyncio.gather(
        *(
            cell.client.generate(
                prompt,
                verifier_id=cell.verifier_id(),
                drafter_id=drafter_id,
                sampling=sampling,
                max_tokens=NUM_TOKENS,
                **options,
            )
            for prompt, drafter_id in zip(prompts, drafter_ids, strict=True)
        )
    )


def texts(generated: Sequence[Generated]) -> list[list[int]]:
    return [answer.token_ids for answer in generated]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
async def test_a_drafter_that_always_lies_changes_no_text_neither_its_own_sessions_nor_the_others(
    target: TargetModel, drafts: dict[str, DraftModel], prompts: list[list[int]], sampling: Sampling
) -> None:
    chosen = prompts[:4]
    async with running(MemoryNetwork().connect, [target], [drafts["int8"], Liar(drafts["int4"], seed=5)]) as cell:
        honest, liar = cell.drafter_id(0), cell.drafter_id(1)
        alone = await answers(cell, chosen, [None] * 4, sampling)
        # The verifier waits for guesses: running free it may be done before the first.
        beside = await answers(cell, chosen, [liar, liar, honest, honest], sampling, free_run=False)
    assert texts(beside) == texts(alone)
    for lied_to in beside[:2]:
        assert lied_to.tally.rejected > 0, "nothing was guessed, so nothing was shown"
        assert lied_to.tally.accepted + lied_to.tally.late < lied_to.tally.rejected
    assert all(served.tally.accepted > 0 for served in beside[2:])


@pytest.mark.parametrize("free_run", [True, False], ids=["free run", "waiting for guesses"])
async def test_a_drafter_that_never_sends_changes_no_text_and_holds_up_nobody_for_long(
    target: TargetModel, drafts: dict[str, DraftModel], prompts: list[list[int]], free_run: bool
) -> None:
    chosen = prompts[4:7]
    async with running(MemoryNetwork().connect, [target], [drafts["int8"]], drafter_lease_s=0.3) as cell:
        silent, honest = new_instance_id("nobody"), cell.drafter_id()
        alone = await answers(cell, chosen, [None] * 3, Sampling())
        beside = await answers(cell, chosen, [silent, silent, honest], Sampling(), free_run=free_run)
    assert texts(beside) == texts(alone)
    assert all(sum((answer.tally.accepted, answer.tally.rejected)) == 0 for answer in beside[:2])
    assert free_run or beside[2].tally.accepted + beside[2].tally.late > 0, "an honest drafter's guesses are judged"


async def test_a_drafter_that_asks_for_ever_to_wait_holds_up_its_answer_for_a_lease_once(
    target: TargetModel, prompts: list[list[int]]
) -> None:
    network = MemoryNetwork()
    stubborn = StubbornDrafter(network.connect())
    async with running(network.connect, [target], [], drafter_lease_s=LEASE_S) as cell, asyncio.TaskGroup() as tasks:
        alone = await answers(cell, prompts[:1], [None], Sampling())
        lying = tasks.create_task(stubborn.run())
        async with asyncio.timeout(NUM_TOKENS * LEASE_S / 2):  # a lease for each token takes twice as long
            held_up = await answers(cell, prompts[:1], [stubborn.instance_id], Sampling(), free_run=False)
        lying.cancel()
    assert texts(held_up) == texts(alone)
    assert stubborn.num_sent > 10, "it lied all the time"
