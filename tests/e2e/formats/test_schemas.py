"""200 JSON schemas on the real pair: answers that end are valid, and speculation changes none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import jsonschema_rs
import pytest
import pytest_asyncio

from services.cloud_verifier.grammars import load_grammars
from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from services.gateway.formats import structured
from services.gateway.text.chat_template import ChatMessage, Conversation
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.formats.schemas import SCHEMAS
from tests.e2e.harness import Cell, Generated, running

NUM_TOKENS = 250
TOGETHER = 8
LEAST_ENDED = 0.95  # of all answers

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(default_models: Path, target: TargetModel, drafts: dict[str, DraftModel]) -> AsyncIterator[Cell]:
    folder = str(default_models / "target")
    engine = TorchEngine(target, 32768, load_grammars(folder, target.vocab_size))
    async with running(MemoryNetwork().connect, [engine], [drafts["int8"]], draft=folder) as running_cell:
        yield running_cell


async def ask(cell: Cell, number: int, temperature: float, tokenizer: TargetTokenizer, *, is_helped: bool) -> Generated:
    schema = SCHEMAS[number]
    wish = f"Write one example as JSON that follows this schema: {json.dumps(schema)}"
    return await cell.client.generate(
        tokenizer.encode_chat(Conversation([ChatMessage("user", wish)])),
        verifier_id=cell.verifier_id(),
        drafter_id=cell.drafter_id() if is_helped else None,
        sampling=Sampling(temperature, seed=number),
        max_tokens=NUM_TOKENS,
        stop_ids=tokenizer.stop_ids,
        grammar=structured.of_json_schema(schema),
    )


async def check(cell: Cell, numbers: Iterable[int], temperature: float, tokenizer: TargetTokenizer) -> float:
    """Returns the share of the answers that ended by themselves."""
    at_once, ended = asyncio.Semaphore(TOGETHER), []

    async def check_one(number: int) -> None:
        async with at_once:
            alone = await ask(cell, number, temperature, tokenizer, is_helped=False)
            helped = await ask(cell, number, temperature, tokenizer, is_helped=True)
        assert helped.token_ids == alone.token_ids, number
        ended.append(alone.finish == "stop")
        if ended[-1]:
            answer = json.loads(tokenizer.decode(alone.token_ids))
            jsonschema_rs.validator_for(SCHEMAS[number], validate_formats=True).validate(answer)

    async with asyncio.TaskGroup() as tasks:
        for number in numbers:
            tasks.create_task(check_one(number))
    return sum(ended) / len(ended)


@pytest.mark.timeout(600)
async def test_answers_are_valid_and_the_same_with_speculation(cell: Cell, tokenizer: TargetTokenizer) -> None:
    assert await check(cell, range(3, 200, 20), 1.0, tokenizer) > 0


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_all_schemas_give_valid_answers_and_the_same_with_speculation(
    temperature: float, cell: Cell, tokenizer: TargetTokenizer
) -> None:
    ended = await check(cell, range(200), temperature, tokenizer)
    print(f"temperature {temperature:g}: {ended:.1%} of {len(SCHEMAS)} answers ended by themselves")
    assert ended >= LEAST_ENDED
