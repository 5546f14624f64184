"""To the bit: the text with speculation is the text without it, for every window, draft and load (`make bits`)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.harness import running
from tests.e2e.ways import ALONE, LOOKING_UP, SAMPLINGS, SLIDING, STOP_AND_WAIT, Way, answers


async def check_bits(
    target: TargetModel,
    drafts: dict[str, DraftModel],
    prompts: Sequence[list[int]],
    stop_ids: Sequence[int],
    ways: Sequence[Way],
    samplings: Sequence[Sampling] = SAMPLINGS,
) -> int:
    """Compares the texts of all `ways` with those of the verifier without a drafter; returns the number of tokens
    compared. What is in flight at once is drawn in all `samplings`."""
    num_compared = 0
    requests = [(prompt, sampling) for sampling in samplings for prompt in prompts]
    first, drafted = next(iter(drafts.values())), [way for way in ways if way.window]
    plain: list[list[int]] = []  # no draft has a part in them
    for kind, draft in drafts.items():
        num_accepted = 0
        async with running(MemoryNetwork().connect, [target], [draft], drafter_lease_s=300.0) as cell:
            if not plain:
                plain, _ = await answers(cell, requests, stop_ids, Way(0, num_at_once=8))
            for way in ways if draft is first else drafted:
                found, accepted = await answers(cell, requests, stop_ids, way)
                assert found == plain, f"{kind}, {way}"
                assert accepted > 0 or not (way.stop_and_wait or way.looks_up), f"{kind}, {way}: no guess was right"
                num_accepted += accepted
                num_compared += sum(map(len, found))
        assert num_accepted > 0, f"{kind}: nothing was speculated, so nothing was shown"
    return num_compared


@pytest.mark.timeout(900)
async def test_speculation_changes_no_token_of_a_fortieth_of_the_prompts_alone(
    target: TargetModel, drafts: dict[str, DraftModel], prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    ways = [Way(3, stop_and_wait=True), *(way for way in (ALONE, *SLIDING) if way.num_at_once == 1)]
    assert await check_bits(target, drafts, prompts[::40], tokenizer.stop_ids, ways) > 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["int8", "int4"])
async def test_speculation_changes_no_token_of_a_tenth_of_the_prompts_eight_at_once(
    target: TargetModel, drafts: dict[str, DraftModel], prompts: list[list[int]], tokenizer: TargetTokenizer, kind: str
) -> None:
    ways = [way for way in (*SLIDING, *STOP_AND_WAIT, *LOOKING_UP) if way.num_at_once == 8]
    if kind == "int4":
        ways.remove(STOP_AND_WAIT[-1])  # a window of 16 is mostly wrong guesses, and takes as long as four others
    assert await check_bits(target, {kind: drafts[kind]}, prompts[::10], tokenizer.stop_ids, ways) > 1000


@pytest.mark.long
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
async def test_speculation_changes_no_token_of_any_prompt(
    target: TargetModel,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    tokenizer: TargetTokenizer,
    kind: str,
    sampling: Sampling,
) -> None:
    ways = [ALONE, *SLIDING, *STOP_AND_WAIT, *LOOKING_UP]
    num_compared = await check_bits(target, {kind: drafts[kind]}, prompts, tokenizer.stop_ids, ways, [sampling])
    print(f"{num_compared} tokens compared, 0 differ")
    assert num_compared > 10_000
