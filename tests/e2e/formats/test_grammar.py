"""Answers that obey a grammar, on the real pair: the same text with speculation as without, and a valid one."""

from __future__ import annotations

import json
from asyncio import gather
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema_rs
import pytest
import pytest_asyncio

from services.cloud_verifier.grammars import load_grammars
from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from services.gateway.formats import structured
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from tests.e2e.formats.schemas import CITY, SAMPLINGS
from tests.e2e.harness import Cell, Generated, running

NUM_TOKENS = 120

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(default_models: Path, target: TargetModel, drafts: dict[str, DraftModel]) -> AsyncIterator[Cell]:
    folder = str(default_models / "target")
    engines = [TorchEngine(target, 8192, load_grammars(folder, target.vocab_size)) for _ in range(2)]
    async with running(MemoryNetwork().connect, engines, [drafts["int4"]], draft=folder) as running_cell:
        yield running_cell


async def ask(cell: Cell, prompt: list[int], name: str, tokenizer: TargetTokenizer, **options) -> Generated:
    options = {"verifier_id": cell.verifier_id(), "grammar": structured.of_json_schema(CITY)} | options
    return await cell.client.generate(
        prompt, sampling=SAMPLINGS[name], max_tokens=NUM_TOKENS, stop_ids=tokenizer.stop_ids, **options
    )


@pytest.mark.parametrize("name", SAMPLINGS)
async def test_speculation_changes_no_answer_and_every_answer_that_ends_is_valid(
    name: str, cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    alone = await gather(*(ask(cell, prompt, name, tokenizer) for prompt in prompts[:3]))
    for window, free_run in ((1, False), (8, False), (8, True)):
        await cell.client.decide(cell.drafter_id(), cell.verifier_id(), window, min(2, window), free_run)
        helped = await gather(*(ask(cell, each, name, tokenizer, drafter_id=cell.drafter_id()) for each in prompts[:3]))
        assert [each.token_ids for each in helped] == [each.token_ids for each in alone]
        # Running free, the verifier may be done before the first guess.
        assert free_run or sum(each.tally.accepted for each in helped), "no guess was right"
    for each in alone:
        assert each.finish == "stop"
        jsonschema_rs.validate(CITY, json.loads(tokenizer.decode(each.token_ids)))


async def test_forced_tokens_save_passes(cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer) -> None:
    answer = await ask(cell, prompts[0], "greedy", tokenizer)
    assert answer.num_verdicts < 0.8 * len(answer.token_ids)


async def test_logprobs_change_no_text_and_belong_to_every_token(
    cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    plain = await ask(cell, prompts[0], "greedy", tokenizer)
    told = await ask(cell, prompts[0], "greedy", tokenizer, logprobs=2)
    assert (told.token_ids, len(told.logprobs)) == (plain.token_ids, len(plain.token_ids))


async def test_an_answer_goes_on_at_another_verifier_from_any_token(
    cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    whole = (await ask(cell, prompts[1], "sampled", tokenizer)).token_ids
    ends = range(1, len(whole), 5)
    options = {"verifier_id": cell.verifier_id(1)}
    rest = [await ask(cell, prompts[1], "sampled", tokenizer, committed_ids=whole[:end], **options) for end in ends]
    assert [each.token_ids for each in rest] == [whole] * len(ends)


async def test_a_grammar_that_does_not_compile_is_refused_by_the_verifier(
    cell: Cell, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    with pytest.raises(RuntimeError, match="bad_request: grammar: "):
        await ask(cell, prompts[0], "greedy", tokenizer, grammar="nonsense")
