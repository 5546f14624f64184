"""The text with speculation is the text without it, as far as vLLM's numerics allow: all of it in float32 on CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cloud_verifier.vllm_engine.engine import VllmEngine
from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from tests.e2e.harness import running
from tests.e2e.ways import ALONE, Request, Way, answers
from tests.e2e.yardstick import PlainModel
from tests.vllm.built_in import built_in_texts
from tests.vllm.conftest import Report, loaded
from tests.vllm.near_ties import differences

SAMPLINGS = (Sampling(), *(Sampling(temperature=0.8, top_p=0.95, seed=20 + number) for number in range(4)))
WAITING = Way(8, stop_and_wait=True, num_at_once=8)
WAYS = (WAITING, Way(8, num_at_once=8), Way(3, stop_and_wait=True), Way(0, num_at_once=8, looks_up=True))
# In logits. In bfloat16 both sides are rounded at every layer, and a sampled gap is divided by the temperature.
NEAR_TIE = {"float32": 1e-3, "bfloat16": 1.0}
LEAST_EQUAL = {"float32": 0.99, "bfloat16": 0.5}

pytestmark = pytest.mark.timeout(3600)
SHORT, WHOLE = pytest.param(20, id="a twentieth"), pytest.param(1, id="all", marks=pytest.mark.long)


def requests_of(prompts: list[list[int]]) -> list[Request]:
    return [(prompt, sampling) for sampling in SAMPLINGS for prompt in prompts]


async def compare(
    engine: VllmEngine, draft: DraftModel, requests: list[Request], stop_ids: list[int], dtype: str, plain: PlainModel
) -> tuple[int, int, list[str]]:
    """Number of equal answers, of answers, and a line on every difference. Fails where one is no near-tie."""
    num_equal = num_answers = 0
    lines = []
    async with running(MemoryNetwork().connect, [engine], [draft], drafter_lease_s=300.0) as cell:
        alone, _ = await answers(cell, requests, stop_ids, Way(0, num_at_once=8))
        for way in WAYS:
            chosen = slice(None) if way is WAITING else slice(0, None, 8)
            found, num_accepted = await answers(cell, requests[chosen], stop_ids, way)
            assert num_accepted > 0 or not (way.stop_and_wait or way.looks_up), f"{way}: no guess was right"
            different = differences(plain, requests[chosen], alone[chosen], found)
            lines += [f"{way}: {each}" for each in different]
            num_equal += len(found) - len(different)
            num_answers += len(found)
            assert all(each.gap < NEAR_TIE[dtype] for each in different), lines
    return num_equal, num_answers, lines


@pytest.mark.parametrize("every", [SHORT, WHOLE])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_speculation_changes_no_text_but_at_near_ties(
    dtype: str,
    every: int,
    default_models: Path,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    tokenizer: TargetTokenizer,
    plain: PlainModel,
    report: Report,
) -> None:
    with loaded(default_models / "target", dtype=dtype) as engine:
        num_equal, num_answers, lines = await compare(
            engine, drafts["int4"], requests_of(prompts[::every]), tokenizer.stop_ids, dtype, plain
        )
    report(f"{dtype}: {num_equal} of {num_answers} answers are equal with and without speculation")
    for line in lines:
        report(line)
    assert num_equal >= LEAST_EQUAL[dtype] * num_answers


@pytest.mark.parametrize("every", [SHORT, WHOLE])
async def test_greedy_float32_texts_are_those_of_the_built_in_engine(
    every: int,
    engine: VllmEngine,
    default_models: Path,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    tokenizer: TargetTokenizer,
    plain: PlainModel,
    report: Report,
) -> None:
    """100 prompts: the 40 of the tests, and texts cut from them."""
    cut = [prompt[:length] for length in (20, 30) for prompt in prompts[:30] if len(prompt) > length]
    requests = [(prompt, Sampling()) for prompt in [*prompts, *cut][:100:every]]
    async with running(MemoryNetwork().connect, [engine], [drafts["int4"]], drafter_lease_s=300.0) as cell:
        found, _ = await answers(cell, requests, tokenizer.stop_ids, WAITING)
    expected = built_in_texts(default_models / "target", [prompt for prompt, _ in requests], tokenizer.stop_ids)
    different = differences(plain, requests, expected, found)
    report(f"{len(found) - len(different)} of {len(found)} greedy answers are those of the built-in engine")
    for each in different:
        report(str(each))
    assert len(different) <= 0.05 * len(found)


async def test_two_sessions_of_one_text_get_one_answer(
    engine: VllmEngine, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    """The n answers of one request differ by their seeds alone."""
    requests = [(prompts[0], Sampling(1.0, seed=seed)) for seed in (1, 1, 2)]
    async with running(MemoryNetwork().connect, [engine], []) as cell:
        found, _ = await answers(cell, requests, tokenizer.stop_ids, Way(0, num_at_once=3))
        (alone,), _ = await answers(cell, requests[:1], tokenizer.stop_ids, ALONE)
    assert found[0] == found[1] == alone
    assert found[2] != alone
