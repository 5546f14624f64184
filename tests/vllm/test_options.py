"""Every sampling option on vLLM: the same text with guesses as without, and the text that numpy draws from a plain
forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.cloud_verifier.vllm_engine.engine import VllmEngine
from services.gateway.text.tokenizer import TargetTokenizer
from shared.protocol.messages import TokenIds, TokenLogprobs
from shared.protocol.sampling import History, adjusted, draw
from tests.e2e.options import OPTIONS
from tests.e2e.yardstick import PlainModel
from tests.vllm.driver import Driver, answer_of, opening

NUM_TOKENS = 16
MIN_TOKENS = {"greedy": NUM_TOKENS, "all": 12}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def driver(engine: VllmEngine) -> Driver:
    return Driver(engine)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_the_same_text_with_guesses_and_numpys_own(
    name: str, driver: Driver, prompts: list[list[int]], tokenizer: TargetTokenizer, plain: PlainModel
) -> None:
    options = {
        "sampling": OPTIONS[name],
        "stop_ids": TokenIds(tokenizer.stop_ids),
        "min_tokens": MIN_TOKENS.get(name, 0),
    }
    requests = [opening(number, prompts[number], NUM_TOKENS, **options) for number in (0, 16)]
    alone = driver.answers(*requests)
    slots = [driver.opens(request) for request in requests]
    driver.finish(*slots, right=alone)
    assert [answer_of(slot) for slot in slots] == alone
    assert sum(slot.state.tally.accepted for slot in slots) > 0
    for request, answer in zip(requests, alone, strict=True):
        assert drawn_by_numpy(plain, request.prompt_ids, answer, name, tokenizer.stop_ids) == answer


def drawn_by_numpy(
    plain: PlainModel, prompt: Sequence[int], answer: Sequence[int], name: str, stop_ids: Sequence[int]
) -> list[int]:
    """What the reference draws at every position, from transformers' logits."""
    drawn = []
    for index, row in enumerate(plain.logits(prompt, answer).numpy()):
        history = History(prompt, answer[:index], stop_ids, MIN_TOKENS.get(name, 0))
        scores = adjusted(row, OPTIONS[name], history)
        drawn.append(draw(scores, OPTIONS[name], len(prompt) + index))  # type: ignore[arg-type]
    return drawn


def test_no_answer_ends_before_min_tokens_and_every_one_ends_at_a_stop_id(
    driver: Driver, prompts: list[list[int]]
) -> None:
    (free,) = driver.answers(opening(1, prompts[3], NUM_TOKENS))
    stop_ids = TokenIds(free[4:5])
    (stopped,) = driver.answers(opening(1, prompts[3], NUM_TOKENS, stop_ids=stop_ids))
    assert stopped == free[: free.index(free[4]) + 1]
    (longer,) = driver.answers(opening(1, prompts[3], NUM_TOKENS, stop_ids=stop_ids, min_tokens=NUM_TOKENS))
    assert len(longer) == NUM_TOKENS
    assert free[4] not in longer


@pytest.mark.parametrize("name", ["greedy", "all"])
def test_logprobs_are_those_of_a_plain_forward_pass_and_change_no_text(
    name: str, driver: Driver, prompts: list[list[int]], plain: PlainModel
) -> None:
    asked, quiet = opening(1, prompts[3], NUM_TOKENS, sampling=OPTIONS[name], logprobs=5), opening(2, prompts[4])
    (alone,) = driver.answers(opening(1, prompts[3], NUM_TOKENS, sampling=OPTIONS[name]))
    told: list[list[TokenLogprobs]] = []
    for num_guesses in (0, 4):
        slot, _ = driver.opens(asked), driver.opens(quiet)
        driver.finish(slot, right=[alone], num_guesses=num_guesses)
        assert answer_of(slot) == alone
        told.append(slot.state.logprobs)
        for each in list(driver):
            driver.close(each.state.session_id, 1, 0.0)
        asked, quiet = opening(3, prompts[3], NUM_TOKENS, sampling=OPTIONS[name], logprobs=5), opening(4, prompts[4])
    for found in told:
        assert len(found) == NUM_TOKENS
        for row, token_id, each in zip(plain.logprobs(prompts[3], alone), alone, found, strict=True):
            assert each.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
            assert each.top_logprobs == pytest.approx(row[list(each.top_ids)].tolist(), abs=1e-3)
            assert each.top_logprobs == sorted(each.top_logprobs, reverse=True)
            assert each.top_logprobs[-1] >= float(row.topk(5).values[-1]) - 1e-3
