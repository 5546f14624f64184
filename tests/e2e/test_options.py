"""Every sampling option, on the real pair: the same text with speculation as without, and the text that numpy draws
from the dumped logits; logprobs are those of a plain forward pass."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from shared.protocol.sampling import History, draw
from tests.e2e.harness import Cell, Generated, running
from tests.e2e.options import OPTIONS
from tests.e2e.yardstick import PlainModel
from tests.reference import long_way

NUM_TOKENS = 24
WINDOWS = (1, 8)
MIN_TOKENS = {"greedy": NUM_TOKENS, "all": 12}  # the others may stop when they like

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(target: TargetModel, drafts: dict[str, DraftModel]) -> AsyncIterator[Cell]:
    async with running(MemoryNetwork().connect, [target], [drafts["int4"]]) as running_cell:
        yield running_cell


async def ask(cell: Cell, prompt: list[int], name: str, stop_ids: Sequence[int], window: int, **options) -> Generated:
    """One answer; window 0: without a drafter, else the verifier waits for every guess."""
    drafter_id = cell.drafter_id() if window else None
    if drafter_id:
        await cell.client.decide(drafter_id, cell.verifier_id(), window, min(2, window), False)
    return await cell.client.generate(
        prompt,
        verifier_id=cell.verifier_id(),
        drafter_id=drafter_id,
        sampling=OPTIONS[name],
        max_tokens=NUM_TOKENS,
        stop_ids=stop_ids,
        min_tokens=MIN_TOKENS.get(name, 0),
        free_run=False,
        **options,
    )


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_gives_the_same_text_at_every_window_and_numpys_own(
    name: str, cell: Cell, target: TargetModel, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    both, stop_ids = (prompts[0], prompts[16]), tokenizer.stop_ids
    alone = [each.token_ids for each in await gather(*(ask(cell, prompt, name, stop_ids, 0) for prompt in both))]
    assert alone[0] == drawn_by_numpy(target, both[0], alone[0], name, stop_ids)
    for window in WINDOWS:
        answers = await gather(*(ask(cell, prompt, name, stop_ids, window) for prompt in both))
        assert [each.token_ids for each in answers] == alone, window
        assert sum(each.tally.accepted for each in answers), f"window {window}: no guess was right"


def drawn_by_numpy(
    target: TargetModel, prompt: list[int], answer: list[int], name: str, stop_ids: Sequence[int]
) -> list[int]:
    """What the reference draws for every position of the answer, given the text before it."""
    fed = [*prompt, *answer[:-1]]
    logits = target.forward([Row(target.new_cache(len(fed)), 0, fed, len(answer), Sampling())])[0].numpy()
    drawn = []
    for index, row in enumerate(logits):
        history = History(prompt, answer[:index], stop_ids, MIN_TOKENS.get(name, 0))
        scores = np.array(long_way(row, OPTIONS[name], history))
        drawn.append(draw(scores, OPTIONS[name], len(prompt) + index))  # type: ignore[arg-type]
    return drawn


async def test_the_options_change_the_text(cell: Cell, prompts: list[list[int]]) -> None:
    answers = await gather(*(ask(cell, prompts[0], name, (), 0) for name in OPTIONS))
    texts = {name: answer.token_ids for name, answer in zip(OPTIONS, answers, strict=True)}
    same = [(one, other) for one in texts for other in texts if one < other and texts[one] == texts[other]]
    assert not same, "an option that changes nothing shows nothing"


async def test_no_answer_ends_before_min_tokens(
    cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    answer = await ask(cell, prompts[3], "greedy", tokenizer.stop_ids, 8)
    assert len(answer.token_ids) == NUM_TOKENS
    assert not set(answer.token_ids) & set(tokenizer.stop_ids)


async def test_logprobs_are_the_same_at_every_window_and_change_no_text(cell: Cell, prompts: list[list[int]]) -> None:
    for name in ("greedy", "all"):
        plain = await ask(cell, prompts[3], name, (), 8)
        alone = await ask(cell, prompts[3], name, (), 0, logprobs=5)
        assert len(alone.logprobs) == NUM_TOKENS
        assert alone.token_ids == plain.token_ids
        for window in WINDOWS:
            assert (await ask(cell, prompts[3], name, (), window, logprobs=5)).logprobs == alone.logprobs


async def test_float32_logprobs_are_those_of_a_plain_forward_pass(
    default_models: Path, drafts: dict[str, DraftModel], prompts: list[list[int]]
) -> None:
    plain = PlainModel(default_models / "target")
    target = load_target(str(default_models / "target"), "cpu", "float32", 1)
    async with running(MemoryNetwork().connect, [target], [drafts["int4"]]) as cell:
        answer = await ask(cell, prompts[16], "all", (), 8, logprobs=20)
    expected = plain.logprobs(prompts[16], answer.token_ids)
    assert answer.tally.accepted > 0, "nothing was speculated"
    for row, token_id, told in zip(expected, answer.token_ids, answer.logprobs, strict=True):
        assert told.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        assert told.top_logprobs == pytest.approx(row[list(told.top_ids)].tolist(), abs=1e-3)
        assert told.top_logprobs[-1] >= float(row.topk(20).values[-1]) - 1e-3


async def test_a_shared_prefix_changes_no_text(
    target: TargetModel, drafts: dict[str, DraftModel], prompts: list[list[int]]
) -> None:
    prompt = prompts[3]
    async with running(MemoryNetwork().connect, [target], [drafts["int4"]]) as cell:
        alone = [(await ask(cell, prompt, name, (), 0)).token_ids for name in ("greedy", "all")]
        first = (await ask(cell, prompt, "greedy", (), 8, cache_scope="ours")).token_ids
        again = (await ask(cell, prompt, "all", (), 8, cache_scope="ours")).token_ids
        engine = cell.engines[0]
        assert engine.num_shared_tokens == len(prompt) - 1
        longer = [*prompt, *first, *prompts[16]]
        followed = (await ask(cell, longer, "greedy", (), 8, cache_scope="ours")).token_ids
        assert engine.num_shared_tokens > 2 * len(prompt)
        unshared = (await ask(cell, longer, "greedy", (), 0)).token_ids
    assert [first, again, followed] == [*alone, unshared]


async def test_the_plain_logprobs_are_normalised(default_models: Path, prompts: list[list[int]]) -> None:
    rows = PlainModel(default_models / "target").logprobs(prompts[16], [5, 6])
    assert torch.allclose(rows.exp().sum(dim=-1), torch.ones(2, dtype=rows.dtype))
