"""Logprobs of a prompt are those that its tokens have when they are generated, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.model import TargetModel, load_target
from shared.policies.batching import Batcher, PassCost
from shared.protocol.messages import Sampling
from shared.protocol.refusal import Refused
from tests.fakes import FakeTarget, fake_engine
from tests.verifier.pass_by_pass import PassByPass, answer_of
from tests.verifier.torch_engine.tiny_models import SERVED, save_model

PROMPT = tuple(range(5, 45))
NUM_TOP = 3
SAMPLED = Sampling(temperature=0.9, seed=3)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    folder = tmp_path_factory.mktemp(request.param)
    return load_target(str(save_model(SERVED[request.param](), folder)), "cpu", "float32")


def a_table(target: TargetModel, num_tokens: int) -> PassByPass:
    """num_tokens: most of a pass."""
    return PassByPass(TorchEngine(target, 4096), Batcher(num_tokens, num_tokens, PassCost()))


@pytest.mark.parametrize("num_tokens", [7, 64])
def test_tokens_of_a_prompt_have_the_logprobs_of_their_generation(target: TargetModel, num_tokens: int) -> None:
    table = a_table(target, num_tokens)
    drawn = table.opens(1, 20, PROMPT, sampling=SAMPLED, logprobs=NUM_TOP, cache_scope="a")
    table.finish(drawn)
    text = drawn.state.tokens
    scored = table.opens(2, 1, text, logprobs=NUM_TOP, prompt_logprobs=True, cache_scope="a")
    beside = table.opens(3, 8, PROMPT[:9], sampling=SAMPLED)
    table.finish(scored, beside)
    assert len(scored.state.logprobs) == len(text), "one for each token but the first, and for the answer"
    assert scored.state.logprobs[len(PROMPT) - 1 : -1] == drawn.state.logprobs[:]
    alone = a_table(target, 256)
    again = alone.opens(4, 1, text, logprobs=NUM_TOP, prompt_logprobs=True, sampling=SAMPLED)
    alone.finish(again)
    assert again.state.logprobs[:] == scored.state.logprobs[:-1] + again.state.logprobs[-1:]


def test_a_scored_session_that_loses_its_cache_scores_its_text_once(target: TargetModel) -> None:
    table = a_table(target, 7)
    slot = table.opens(1, 1, PROMPT, logprobs=0, prompt_logprobs=True)
    table.run_pass()
    assert slot.state.finish is None
    table._preempt(slot)
    table.admit()
    table.finish(slot)
    whole = a_table(target, 64)
    other = whole.opens(1, 1, PROMPT, logprobs=0, prompt_logprobs=True)
    whole.finish(other)
    assert slot.state.logprobs[:] == other.state.logprobs[:]
    assert answer_of(slot) == answer_of(other)


def test_right_guesses_of_a_scored_session_are_accepted_behind_its_prompt(target: TargetModel) -> None:
    table = a_table(target, 64)
    alone = table.opens(1, 8, PROMPT, logprobs=0, prompt_logprobs=True)
    table.finish(alone)
    guessed = table.opens(2, 8, PROMPT, logprobs=0, prompt_logprobs=True)
    table.guess(guessed, answer_of(alone)[:5])
    assert table.finish(guessed) < 8
    assert guessed.state.tally.accepted == 5
    assert guessed.state.logprobs[:] == alone.state.logprobs[:]


@pytest.mark.parametrize(("fields", "told"), [({}, "prompt_logprobs needs logprobs"), ({"logprobs": 0}, "echo")])
def test_an_engine_that_scores_no_text_refuses_for_good(fields: dict[str, int], told: str) -> None:
    engine = fake_engine(FakeTarget())
    engine.info = replace(engine.info, scores_text=False)
    with pytest.raises(Refused, match=told) as refused:
        PassByPass(engine).opens(1, prompt_logprobs=True, **fields)
    assert (refused.value.code, refused.value.retryable) == ("bad_request", False)
