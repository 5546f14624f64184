"""Work of the built-in engine that must not grow with the text or with the number of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from services.cloud_verifier.engine import StepRow
from services.cloud_verifier.torch_engine import engine, prefixes
from services.cloud_verifier.torch_engine.model import Row, TargetModel
from shared.protocol.messages import NO_TOKENS, Bias, Open, Sampling, TokenIds
from tests.fakes import FakeTarget, fake_engine
from tests.memory import peak_bytes

VOCABULARY = 50
OPTIONS = {
    "plain": Sampling(),
    "repetition": Sampling(repetition_penalty=1.2),
    "presence": Sampling(presence_penalty=0.4, frequency_penalty=0.1),
    "bias": Sampling(logit_bias=(Bias(3, 1.0),)),
}


class FlatTarget(TargetModel):
    """Draws from equal logits. Its caches hold nothing."""

    def __init__(self) -> None:
        self.fingerprint, self.vocab_size, self.max_context = "flat", VOCABULARY, 1 << 20

    def new_cache(self, capacity: int) -> FlatCache:  # type: ignore[override]
        return FlatCache(capacity)

    def _feed(self, rows: Sequence[Row]) -> tuple[FlatOutputs, list[range]]:  # type: ignore[override]
        ends = np.cumsum([row.num_draws for row in rows]).tolist()
        return FlatOutputs(), [range(end - row.num_draws, end) for end, row in zip(ends, rows, strict=True)]


class FlatCache:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity


class FlatOutputs:
    def logits(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(indices), VOCABULARY)

    def best(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(indices), dtype=torch.int64)


def a_request(number: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int = 2000) -> Open:
    ids = TokenIds(prompt)
    return Open(f"{number:032x}", 1, None, ids, NO_TOKENS, sampling, NO_TOKENS, max_tokens, cache_scope="a")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_output", [1, 1000])
def test_a_pass_takes_no_more_memory_after_a_long_text_than_after_a_short_one(name: str, num_output: int) -> None:
    peaks = []
    for num_prompt in (200, 40_000):
        flat = engine.TorchEngine(FlatTarget(), 1 << 20)
        text = TokenIds([token_id % VOCABULARY for token_id in range(num_prompt + num_output)])
        context = flat.open(a_request(1, text[:num_prompt], OPTIONS[name]), text)
        assert context is not None
        flat.step([StepRow(context, 0, text, 1)])
        rows = [StepRow(context, len(text) + i, TokenIds([7, 8, 9]), 3) for i in range(4)]
        flat.step(rows[:1])
        peaks.append(min(peak_bytes(partial(flat.step, [row])) for row in rows[1:]))
    assert peaks[1] < 2 * peaks[0] + 1000


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that were compared from their beginnings."""
    lengths = []
    original = prefixes.num_common

    def num_common(left: np.ndarray, right: np.ndarray) -> int:
        lengths.append(min(len(left), len(right)))
        return original(left, right)

    for module in (prefixes, engine):
        monkeypatch.setattr(module, "num_common", num_common)
    return lengths


@pytest.mark.parametrize("num_others", [2, 100])
def test_an_opening_compares_its_text_with_few_others_however_many_there_are(
    num_others: int, counted: list[int]
) -> None:
    shared = fake_engine(FakeTarget(), 1 << 20)
    common = list(range(40))
    for number in range(2 * num_others):  # half of them are kept, half stay open
        text = [*common, number % 97, number // 97, 5]
        context = shared.open(a_request(number, text, Sampling(), 8), text)
        assert context is not None
        if number % 2:
            context.prefix = None  # as if it had been copied
            shared.close(context, text)
    counted.clear()
    context = shared.open(a_request(9999, common, Sampling(), 8), [*common, 1])
    assert context is not None
    assert context.num_shared == len(common) or context.source is not None
    assert 0 < len(counted) <= 8


def test_a_context_that_waits_for_a_prefix_is_not_compared_before_it_is_computed(counted: list[int]) -> None:
    shared = fake_engine(FakeTarget(), 1 << 20)
    text = TokenIds(range(64))
    first, second = (shared.open(a_request(number, text, Sampling(), 8), text) for number in (1, 2))
    assert first is not None
    assert second is not None
    counted.clear()
    for start in range(0, 48, 16):
        shared.step([StepRow(first, start, text[start : start + 16], 0)])
        shared.share(second)
    assert second.num_shared is None
    assert counted == []
    shared.step([StepRow(first, 48, text[48:], 1)])
    shared.share(second)
    assert second.num_shared == 63
