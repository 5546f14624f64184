"""Contexts that grow, and are computed again after a preemption, give the same bits on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.model import TargetModel, load_target
from shared.policies.kv_cache import KV_AHEAD, likely_kv_tokens
from shared.protocol.messages import Bias, Sampling
from tests.verifier.pass_by_pass import PassByPass, answer_of
from tests.verifier.torch_engine.tiny_models import SERVED, VOCAB_SIZE, save_model

PROMPT = [*range(3, 40)]
MAX_TOKENS = 330
REQUESTS: list[dict[str, object]] = [
    {"cache_scope": "a"},
    {"sampling": Sampling(temperature=0.9, seed=1), "logprobs": 2},
    {
        "sampling": Sampling(
            temperature=1.2,
            top_p=0.95,
            top_k=40,
            seed=2,
            presence_penalty=0.4,
            frequency_penalty=0.2,
            logit_bias=(Bias(5, 1.0),),
        )
    },
    {"sampling": Sampling(temperature=0.7, seed=3, frequency_penalty=0.5), "cache_scope": "a"},
]


def answers(model: TargetModel, kv_tokens: int, right: list[list[int]]) -> tuple[list[object], PassByPass]:
    """Text and logprobs of the requests. right: answers from which guesses are taken, one of ten of them wrong."""
    table = PassByPass(TorchEngine(model, kv_tokens))
    slots = [table.opens(number, MAX_TOKENS, PROMPT, **request) for number, request in enumerate(REQUESTS)]
    num_passes = 0
    while any(slot.state.finish is None for slot in slots):
        for slot, text in zip(slots, right, strict=False):
            first = slot.state.length - len(PROMPT) + len(slot.state.guesses.pending)
            guesses = [(token + (i % 10 == 9)) % VOCAB_SIZE for i, token in enumerate(text[first : first + 12], first)]
            if slot.state.finish is None and num_passes % 3 == 0:
                table.guess(slot, guesses)
        table.run_pass()
        table.check()
        num_passes += 1
    return [(answer_of(slot), list(slot.state.logprobs[:])) for slot in slots], table


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mistral with a sliding window"])
def test_texts_are_the_same_to_the_bit_with_and_without_preemption(tmp_path: Path, name: str) -> None:
    model = load_target(str(save_model(SERVED[name](), tmp_path)), "cpu", "auto")
    first = likely_kv_tokens(len(PROMPT), KV_AHEAD)
    alone, roomy = answers(model, 1 << 14, [])
    assert roomy.num_preemptions == 0
    texts = [text for text, _ in alone]
    crowded, table = answers(model, 2 * first + 64, [])
    assert crowded == alone
    assert table.num_preemptions > 0
    drafted, table = answers(model, 2 * first + 64, texts)
    assert drafted == alone
    assert table.num_preemptions > 0
    assert any(slot.state.tally.accepted > 50 for slot in table)
