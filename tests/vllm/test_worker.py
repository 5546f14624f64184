"""The draws of vLLM's worker without vLLM's model: what they keep of a request, and what a step costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import torch

from services.cloud_verifier.vllm_engine.worker import RULE_KEY, CoupledSampler, DrawRule
from shared.grammar.grammars import Grammars
from shared.protocol.messages import Sampling
from shared.protocol.sampling import History, draw
from tests.memory import peak_bytes

VOCABULARY = 50
PENALISED = Sampling(0.8, seed=4, presence_penalty=0.5, repetition_penalty=1.4)


class Runner:
    """A batch of one request, as vLLM's model runner has it."""

    def __init__(self, text: Sequence[int], num_prompt: int) -> None:
        rule = DrawRule(PENALISED, num_prompt, (), 0, None)
        params = SimpleNamespace(extra_args={RULE_KEY: msgspec.to_builtins(rule)})
        self.requests = {"a": SimpleNamespace(sampling_params=params)}
        ids = np.zeros((1, len(text) + 100), dtype=np.int32)
        ids[0, : len(text)] = text
        self.input_batch = SimpleNamespace(
            req_ids=["a"], num_reqs=1, token_ids_cpu=ids, num_tokens_no_spec=np.array([len(text)])
        )
        self.discard_request_mask = SimpleNamespace(np=np.array([False]))

    @property
    def text(self) -> list[int]:
        return self.input_batch.token_ids_cpu[0, : self.input_batch.num_tokens_no_spec[0]].tolist()

    def commit(self, token_ids: Sequence[int]) -> None:
        end = int(self.input_batch.num_tokens_no_spec[0])
        self.input_batch.token_ids_cpu[0, end : end + len(token_ids)] = token_ids
        self.input_batch.num_tokens_no_spec[0] = end + len(token_ids)


def step(sampler: CoupledSampler, logits: torch.Tensor, guesses: Sequence[int]) -> list[int]:
    metadata = SimpleNamespace(num_draft_tokens=[len(guesses)], draft_token_ids=torch.tensor(guesses))
    drawn = sampler(logits, metadata).sampled_token_ids[0].tolist()
    return [token_id for token_id in drawn if token_id >= 0]


def test_each_row_is_penalised_by_the_whole_text_before_it() -> None:
    runner = Runner([3, 4, 5, 6], 3)
    sampler, generator = CoupledSampler(runner, Grammars(), VOCABULARY), torch.Generator().manual_seed(1)
    for turn in range(12):
        logits = torch.randn(3, VOCABULARY, generator=generator) * 3
        text = runner.text
        first = draw(logits[0].numpy(), PENALISED, len(text), History(text[:3], text[3:]))
        guesses = [first, 9] if turn % 2 else [9, 9]
        drawn = step(sampler, logits, guesses)
        for i, token_id in enumerate(drawn):
            history = History(text[:3], [*text[3:], *drawn[:i]])
            assert token_id == draw(logits[i].numpy(), PENALISED, len(text) + i, history)
        runner.commit(drawn)


def test_a_step_takes_no_more_memory_after_a_long_text_than_after_a_short_one() -> None:
    peaks = []
    for num_tokens in (200, 40_000):
        runner = Runner([token_id % VOCABULARY for token_id in range(num_tokens)], 100)
        sampler, logits = CoupledSampler(runner, Grammars(), VOCABULARY), torch.zeros(3, VOCABULARY)
        runner.commit(step(sampler, logits, [1, 2]))
        peaks.append(min(peak_bytes(partial(step, sampler, logits, [1, 2])) for _ in range(3)))
    assert peaks[1] < 2 * peaks[0] + 1000


def test_nothing_is_kept_of_requests_that_are_over() -> None:
    runner = Runner([3, 4, 5, 6], 3)
    sampler = CoupledSampler(runner, Grammars(), VOCABULARY)
    for number in range(50):
        runner.requests = {str(number): next(iter(runner.requests.values()))}
        runner.input_batch.req_ids = [str(number)]
        step(sampler, torch.zeros(1, VOCABULARY), [])
    assert len(sampler._followed) <= 2
