"""Right, by independent yardsticks: transformers' own `generate`, a plain float32 forward, and the numpy draw.

All texts come from the real verifier and drafter with speculation on. A tenth of the prompts runs in `make test`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target
from services.edge_drafter.model import DraftModel
from services.gateway.text.tokenizer import TargetTokenizer
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol.messages import Sampling
from shared.protocol.sampling import draw
from tests.e2e.harness import running
from tests.e2e.ways import NUM_TOKENS, Way, texts
from tests.e2e.yardstick import PlainModel

NEAR_TIE = 1e-4
LEAST_BEST = 0.95
SAMPLED = {
    "nucleus": Sampling(temperature=0.8, top_p=0.95, seed=20),
    "everything": Sampling(temperature=1.0, seed=-3),
    "top-k and min-p": Sampling(temperature=1.3, top_k=40, min_p=0.02, seed=7),
}

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(
    scope="module",
    params=[pytest.param(10, id="a tenth of the prompts"), pytest.param(1, id="all prompts", marks=pytest.mark.long)],
)
def numbers(request: pytest.FixtureRequest, prompts: list[list[int]]) -> range:
    """Which prompts are asked."""
    return range(0, len(prompts), request.param)


@pytest.fixture(scope="module")
def plain(default_models: Path) -> PlainModel:
    torch.set_num_threads(1)  # as the targets here do
    return PlainModel(default_models / "target")


@pytest.fixture(scope="module")
def target_float32(default_models: Path) -> TargetModel:
    return load_target(str(default_models / "target"), "cpu", "float32", 1)


async def speculated(
    target: TargetModel, draft: DraftModel, prompts: list[list[int]], sampling: Sampling, tokenizer: TargetTokenizer
) -> list[list[int]]:
    """The answers of a verifier and a drafter to all prompts, 8 at once; it waits for guesses, however fast it is."""
    async with running(MemoryNetwork().connect, [target], [draft]) as cell:
        answers, accepted = await texts(
            cell, prompts, sampling, tokenizer.stop_ids, Way(8, stop_and_wait=True, num_at_once=8)
        )
    assert accepted > len(prompts), "next to nothing was speculated"
    return answers


async def test_greedy_float32_texts_are_those_of_transformers_generate_but_for_near_ties(
    target_float32: TargetModel,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    numbers: range,
    tokenizer: TargetTokenizer,
    plain: PlainModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [prompts[number] for number in numbers]
    answers = await speculated(target_float32, drafts["int4"], asked, Sampling(), tokenizer)

    departures = [
        (number, departure.index, departure.margin)
        for number, prompt, answer in zip(numbers, asked, answers, strict=True)
        for departure in plain.departures(prompt, answer, NUM_TOKENS, tokenizer.stop_ids)
    ]
    with capsys.disabled():
        print(f"\n{sum(map(len, answers))} tokens of {len(answers)} texts, {len(departures)} of them not generate's")
        for number, index, margin in departures:
            print(f"  prompt {number}, token {index} of the answer: generate's logit is {margin:.1e} above ours")
    assert all(margin < NEAR_TIE for _, _, margin in departures), departures


async def test_greedy_bfloat16_tokens_are_the_argmax_of_a_plain_float32_forward(
    target: TargetModel,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    numbers: range,
    tokenizer: TargetTokenizer,
    plain: PlainModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [prompts[number] for number in numbers]
    answers = await speculated(target, drafts["int4"], asked, Sampling(), tokenizer)

    num_tokens = sum(map(len, answers))
    num_best = sum(plain.num_best(prompt, answer) for prompt, answer in zip(asked, answers, strict=True))
    with capsys.disabled():
        print(f"\n{num_best} of {num_tokens} tokens ({num_best / num_tokens:.1%}) are the float32 argmax")
    assert num_best >= LEAST_BEST * num_tokens


def test_the_yardstick_notices_a_wrong_token_and_a_wrong_length(plain: PlainModel, prompts: list[list[int]]) -> None:
    prompt, stop_ids = prompts[0], [0]
    right, _ = plain.generate(prompt, 8, stop_ids)
    wrong = [*right[:3], right[3] + 1]
    wrong += plain.generate(prompt + wrong, 4, stop_ids)[0]

    assert plain.departures(prompt, right, 8, stop_ids) == []
    (departure,) = plain.departures(prompt, wrong, 8, stop_ids)
    assert departure.index == 3
    assert departure.margin > NEAR_TIE
    for bad in (right[:7], right + right):
        with pytest.raises(AssertionError, match="tokens, generate has 8"):
            plain.departures(prompt, bad, 8, stop_ids)


@pytest.mark.parametrize("sampling", SAMPLED.values(), ids=SAMPLED)
async def test_sampled_tokens_are_those_that_numpy_draws_from_the_dumped_logits(
    target: TargetModel,
    drafts: dict[str, DraftModel],
    prompts: list[list[int]],
    numbers: range,
    tokenizer: TargetTokenizer,
    sampling: Sampling,
) -> None:
    asked = [prompts[number] for number in numbers]
    answers = await speculated(target, drafts["int4"], asked, sampling, tokenizer)

    for prompt, answer in zip(asked, answers, strict=True):
        assert answer == drawn_by_numpy(target, prompt, answer, sampling)


def drawn_by_numpy(target: TargetModel, prompt: list[int], answer: list[int], sampling: Sampling) -> list[int]:
    """What the reference draws for every position of the answer, given the text before it."""
    fed = [*prompt, *answer[:-1]]
    row = Row(target.new_cache(len(fed)), 0, fed, len(answer), sampling)
    logits = target.forward([row])[0].numpy()  # [answer, vocab]
    return [draw(row_logits, sampling, len(prompt) + index) for index, row_logits in enumerate(logits)]
