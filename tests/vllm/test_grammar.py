"""Answers that obey a grammar on vLLM: the text of the built-in rules, with guesses and without, resumed or not."""

from __future__ import annotations

import json

import pytest

from services.cloud_verifier.vllm_engine.engine import VllmEngine
from services.gateway.formats import structured
from services.gateway.text.tokenizer import TargetTokenizer
from shared.protocol.messages import Open, Sampling, TokenIds
from tests.e2e.formats.schemas import CITY, SAMPLINGS
from tests.vllm.driver import Driver, answer_of, opening

NUM_TOKENS = 120

pytestmark = pytest.mark.timeout(600)


def requests(name: str, prompts: list[list[int]], tokenizer: TargetTokenizer, **options) -> list[Open]:
    grammar, stop_ids = structured.of_json_schema(CITY), TokenIds(tokenizer.stop_ids)
    options = {"sampling": SAMPLINGS[name], "stop_ids": stop_ids, "grammar": grammar} | options
    return [opening(number, prompts[number], NUM_TOKENS, **options) for number in (0, 1)]


@pytest.mark.parametrize("name", SAMPLINGS)
def test_guesses_change_no_answer_and_every_one_is_valid(
    name: str, engine: VllmEngine, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    driver, asked = Driver(engine), requests(name, prompts, tokenizer)
    alone = driver.answers(*asked)
    slots = [driver.opens(request) for request in asked]
    driver.finish(*slots, right=alone)
    assert [answer_of(slot) for slot in slots] == alone
    assert sum(slot.state.tally.accepted for slot in slots) > 0
    for answer in alone:
        assert answer[-1] in tokenizer.stop_ids
        assert list(json.loads(tokenizer.decode(answer))) == CITY["required"]


def test_logprobs_change_no_answer(engine: VllmEngine, prompts: list[list[int]], tokenizer: TargetTokenizer) -> None:
    """With them no token is forced, so each is drawn in a pass."""
    driver = Driver(engine)
    plain = driver.answers(*requests("sampled", prompts, tokenizer))
    assert driver.answers(*requests("sampled", prompts, tokenizer, logprobs=2)) == plain


def test_forced_tokens_save_passes(engine: VllmEngine, prompts: list[list[int]], tokenizer: TargetTokenizer) -> None:
    driver = Driver(engine)
    (slot,) = [driver.opens(requests("greedy", prompts, tokenizer)[0])]
    driver.finish(slot)
    assert slot.state.num_passes < 0.8 * len(answer_of(slot))


def test_more_forced_tokens_than_a_step_takes_are_all_written(
    engine: VllmEngine, prompts: list[list[int]], tokenizer: TargetTokenizer
) -> None:
    """vLLM takes forced tokens as guesses, of which a step has few."""
    driver, text = Driver(engine), "forty words of no use " * 10
    options = {"sampling": Sampling(), "grammar": structured.of_regex(text)}
    slot = driver.opens(requests("greedy", prompts, tokenizer, **options)[0])
    driver.finish(slot)
    assert tokenizer.decode(answer_of(slot)) == text
