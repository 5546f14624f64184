"""Many sessions on the real bus and the real pair: they join and leave, drafters lie, clients vanish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.cloud_verifier.vllm_engine.engine import VllmEngine
from services.edge_drafter.model import DraftModel
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.faults.liar import Liar
from tests.e2e.harness import Cell, running
from tests.vllm import tiny
from tests.vllm.conftest import loaded

NUM_SESSIONS, NUM_TOKENS = 32, 16

pytestmark = pytest.mark.timeout(600)


async def ask(cell: Cell, prompt: list[int], seed: int, drafter_id: str | None) -> list[int]:
    sampling = Sampling(0.8, seed=seed) if seed % 2 else Sampling()
    answer = await cell.client.generate(
        prompt, verifier_id=cell.verifier_id(), drafter_id=drafter_id, sampling=sampling, max_tokens=NUM_TOKENS
    )
    return answer.token_ids


async def test_32_sessions_join_and_leave_beside_a_lying_drafter_and_clients_that_vanish(
    engine: VllmEngine, drafts: dict[str, DraftModel], prompts: list[list[int]]
) -> None:
    chosen = [(prompts[number % len(prompts)], number) for number in range(NUM_SESSIONS)]
    models = [drafts["int8"], Liar(drafts["int4"], seed=5)]
    async with running(MemoryNetwork().connect, [engine], models, drafter_lease_s=300.0) as cell:
        alone = await asyncio.gather(*(ask(cell, prompt, seed, None) for prompt, seed in chosen))
        tasks, vanished = [], []
        for number, (prompt, seed) in enumerate(chosen):
            tasks.append(asyncio.create_task(ask(cell, prompt, seed, cell.drafter_id(number % 2))))
            vanished.append(asyncio.create_task(ask(cell, prompt[5:], seed, None)))
            await asyncio.sleep(0.05)  # so that they join passes one after the other
            if number >= 4:
                vanished[number - 4].cancel()
        found = await asyncio.gather(*tasks)
        for task in vanished:
            task.cancel()
        await asyncio.gather(*vanished, return_exceptions=True)
        async with asyncio.timeout(30):
            while len(cell.verifiers[0].table):  # noqa: ASYNC110  closed sessions are gone when the loop says so
                await asyncio.sleep(0.01)
    assert found == alone
    assert engine.free_kv_tokens == engine.info.kv_tokens


async def test_sessions_that_need_twice_the_kv_cache_are_all_answered(tmp_path: Path) -> None:
    """By the verify loop itself: preempted sessions wait, and go on where they were."""
    folder = tiny.save(tiny.llama(), tmp_path)
    prompts = [[3 + (number * 7 + each) % 500 for each in range(40)] for number in range(6)]
    with loaded(folder, vllm_args=f"{tiny.FLAGS} --num-gpu-blocks-override 8") as engine:
        async with running(MemoryNetwork().connect, [engine], []) as cell:

            async def answer(prompt: list[int]) -> list[int]:
                return (await cell.client.generate(prompt, verifier_id=cell.verifier_id(), max_tokens=250)).token_ids

            alone = [await answer(prompt) for prompt in prompts]
            assert engine.num_preemptions == 0
            assert await asyncio.gather(*map(answer, prompts)) == alone
        assert engine.num_preemptions > 0
