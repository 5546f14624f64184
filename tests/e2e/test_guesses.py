"""What the default pair's guesses are worth: right under every sampling option, and fewer where windows end early."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Bias, Sampling, Speculation
from tests.e2e.harness import Cell, Generated, running

NUM_TOKENS = 32
WINDOW = 8
PENALISED = {
    "repetition": Sampling(repetition_penalty=1.5),
    "biases": Sampling(logit_bias=(Bias(28, 12.0), Bias(30, -20.0), Bias(216, 10.0)), frequency_penalty=1.0),
}

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(target: TargetModel, drafts: dict[str, DraftModel]) -> AsyncIterator[Cell]:
    """Stop-and-wait, so that nothing is late however busy the machine is."""
    async with running(MemoryNetwork().connect, [target], [drafts["int8"]], drafter_lease_s=300.0) as cell:
        await cell.client.decide(cell.drafter_id(), cell.verifier_id(), WINDOW, WINDOW, free_run=False)
        yield cell


async def ask(cell: Cell, prompt: list[int], sampling: Sampling, min_confidence: float = 0.0) -> Generated:
    return await cell.client.generate(
        prompt,
        verifier_id=cell.verifier_id(),
        drafter_id=cell.drafter_id(),
        sampling=sampling,
        max_tokens=NUM_TOKENS,
        speculation=Speculation("static", WINDOW, min_confidence),
        free_run=False,
    )


@pytest.mark.parametrize("name", PENALISED)
async def test_guesses_are_as_right_under_penalties_and_biases_as_without(
    name: str, cell: Cell, prompts: list[list[int]]
) -> None:
    tallies = [(await ask(cell, prompt, PENALISED[name])).tally for prompt in prompts[3:17:13]]
    accepted, rejected = sum(tally.accepted for tally in tallies), sum(tally.rejected for tally in tallies)
    assert accepted / (accepted + rejected) > 0.8


async def test_windows_that_end_early_give_the_same_texts_with_fewer_guesses_discarded(
    cell: Cell, prompts: list[list[int]]
) -> None:
    sampling, chosen = Sampling(temperature=1.0, seed=4), prompts[3:24:4]
    whole, early = [
        [await ask(cell, prompt, sampling, min_confidence) for prompt in chosen] for min_confidence in (0.0, 0.5)
    ]
    assert [answer.token_ids for answer in early] == [answer.token_ids for answer in whole]
    assert sum(answer.tally.accepted for answer in early) > sum(answer.tally.accepted for answer in whole) / 2
    assert sum(answer.tally.discarded for answer in early) < sum(answer.tally.discarded for answer in whole) / 2
