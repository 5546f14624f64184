"""The verifier draws the same tokens as `shared.protocol.sampling`, for any batch, on the CPU and in torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from services.cloud_verifier import sampler
from shared.protocol import running_adjustment
from shared.protocol import sampling as reference
from shared.protocol.messages import Bias, Sampling
from shared.protocol.running_adjustment import RunningAdjustment

GOLDEN = json.loads((Path(__file__).parents[1] / "shared" / "protocol" / "golden_noise.json").read_text())
SAMPLINGS = [
    Sampling(0.0),
    Sampling(1.0, top_k=1, seed=3),
    Sampling(1.0, seed=4),
    Sampling(0.3, seed=-5),
    Sampling(0.8, top_p=0.95, seed=6),
    Sampling(0.8, top_k=20, seed=7),
    Sampling(1.2, top_k=100_000, seed=8),
    Sampling(1.5, top_k=50, top_p=0.9, min_p=0.02, seed=9),
    Sampling(1.0, min_p=0.1, seed=10),
    Sampling(40.0, top_p=0.99, seed=11),
    Sampling(5e-324, top_p=0.5, seed=12),
]


Draw = Callable[[torch.Tensor, Sampling, int], torch.Tensor]
DRAWS = pytest.mark.parametrize("draw", [sampler.draw, sampler.draw_on_device])


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def logits_of(num_rows: int, vocab_size: int, seed: int, *, tied: bool) -> torch.Tensor:
    """Random logits; tied: rounded, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 4
    return (logits / 2).round() * 2 if tied else logits


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden['seed']}@{golden['position']}")
def test_uniform_noise_has_the_golden_bits(golden: dict) -> None:
    u = sampler.uniform(golden["seed"], golden["position"], torch.tensor([golden["token_ids"]]))
    assert [value.hex() for value in u[0].tolist()] == golden["u"]


def test_uniform_noise_of_a_whole_vocabulary_has_the_bits_of_numpys() -> None:
    ids = torch.arange(50_257).expand(3, -1)
    for row, noise in enumerate(sampler.uniform(-77, 1000, ids)):
        assert np.array_equal(noise.numpy(), reference.uniform(-77, 1000 + row, ids[0].numpy()))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
@DRAWS
def test_draws_equal_numpys(draw: Draw, tied: bool, sampling: Sampling) -> None:
    for case, vocab_size in enumerate([2, 97, 1000, 5003]):
        logits = logits_of(12, vocab_size, case, tied=tied)
        expected = [reference.draw(row.numpy(), sampling, 30 + i) for i, row in enumerate(logits)]
        assert draw(logits, sampling, 30).tolist() == expected


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@DRAWS
def test_a_rows_draw_does_not_depend_on_the_rows_beside_it_or_the_threads(draw: Draw, sampling: Sampling) -> None:
    logits = logits_of(9, 20_011, 1, tied=False)
    logits[4] *= 0.01  # a nearly flat row, with many more candidates than the others
    alone = [int(draw(row[None], sampling, 5 + i)) for i, row in enumerate(logits)]
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        assert draw(logits, sampling, 5).tolist() == alone
        assert draw(logits[3:6], sampling, 8).tolist() == alone[3:6]


@pytest.mark.parametrize("num_rows", [1, 5])
def test_noisy_scores_have_the_same_bits_in_every_batch(num_rows: int) -> None:
    ids = torch.arange(49_999)[None]
    keys = sampler._keys(1, 0, 7, torch.device("cpu"))
    torch.set_num_threads(1)
    expected = sampler._gumbel(keys, ids)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        assert torch.equal(sampler._gumbel(keys[:num_rows], ids), expected[:num_rows])


def test_gumbel_noise_agrees_with_numpys_within_a_few_ulp() -> None:
    ids = torch.arange(50_000)
    ours = sampler._gumbel(sampler._keys(1, 2, 1, ids.device), ids[None])[0].numpy()
    assert np.allclose(ours, reference.gumbel(1, 2, ids.numpy()), rtol=4 * 2.0**-52, atol=4 * 2.0**-52)


@DRAWS
def test_draws_follow_the_softmax_on_a_small_vocabulary(draw: Draw) -> None:
    logits = torch.tensor([1.5, -0.3, 0.7, 2.1, 0.0, -2.0])
    token_ids = draw(logits.expand(8_000, -1), Sampling(1.1, seed=2), 0)
    expected = (logits.double() / 1.1).softmax(-1).numpy() * 8_000
    assert chisquare(np.bincount(token_ids.numpy(), minlength=6), expected).pvalue > 1e-3


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@DRAWS
def test_rows_without_a_finite_best_are_marked_and_the_others_drawn(draw: Draw, sampling: Sampling) -> None:
    logits = logits_of(4, 50, 2, tied=False)
    expected = draw(logits, sampling, 0).tolist()
    logits[1, 7], logits[3] = torch.nan, -torch.inf
    assert draw(logits, sampling, 0).tolist() == [expected[0], sampler.NO_DRAW, expected[2], sampler.NO_DRAW]
    assert draw(logits[1:2], sampling, 1).tolist() == [sampler.NO_DRAW]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@DRAWS
def test_no_rows_give_no_draws(draw: Draw, sampling: Sampling) -> None:
    assert draw(torch.empty(0, 50), sampling, 0).tolist() == []


ADJUSTED = [
    Sampling(presence_penalty=1.1, frequency_penalty=0.3),
    Sampling(0.9, seed=2, repetition_penalty=1.4),
    Sampling(0.8, top_p=0.9, seed=3, frequency_penalty=-1.5, logit_bias=(Bias(5, 4.0), Bias(90, -100.0))),
    Sampling(1.0, top_k=10, seed=4, presence_penalty=-2.0),
]


@pytest.mark.parametrize("sampling", ADJUSTED, ids=str)
@pytest.mark.parametrize("min_tokens", [0, 6])
def test_each_row_is_penalised_by_the_guesses_before_it(sampling: Sampling, min_tokens: int) -> None:
    logits = logits_of(9, 97, 5, tied=True)
    prompt, output, guesses = [1, 5, 5, 90], [7, 7, 13], [20, 7, 5, 5, 96, 0, 20, 20]
    running = RunningAdjustment(sampling, prompt, [5, 20, 7], min_tokens)
    running.extend(output)
    expected = []
    for i, row in enumerate(logits):
        before = reference.History(prompt, [*output, *guesses[:i]], [5, 20, 7], min_tokens)
        expected.append(reference.draw(row.numpy(), sampling, 40 + i, before))
    assert sampler.draw(sampler.adjust(logits, running, guesses), sampling, 40).tolist() == expected
    assert list(running.output_ids) == output, "guesses leave no trace"


class CountedAdjustment(RunningAdjustment):
    """Counts the tokens that come and go."""

    num_changes = 0

    def _count(self, entry: int, count: int) -> None:
        self.num_changes += 1
        super()._count(entry, count)


@pytest.mark.parametrize("num_tokens", [1_000, 100_000])
def test_a_penalised_row_costs_as_much_as_its_guesses_however_long_the_text_is(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = np.random.default_rng(6).integers(0, 97, num_tokens).tolist()
    running = CountedAdjustment(ADJUSTED[1], text[: num_tokens // 2])
    running.extend(text[num_tokens // 2 :])
    logits, guesses, running.num_changes = logits_of(9, 97, 5, tied=False), [3, 4, 3, 96, 0, 3, 5, 5], 0
    monkeypatch.setattr(running_adjustment, "adjustment", None)  # that reads the whole text
    sampler.adjust(logits, running, guesses)
    assert running.num_changes == 2 * len(guesses), "each comes, and goes at the end"
    assert len(running.current.token_ids) <= 97


def test_scores_have_the_bits_of_numpys() -> None:
    logits = logits_of(1, 5003, 8, tied=False)
    history = reference.History(list(range(0, 5003, 7)), list(range(0, 5003, 11)), [3], 9999)
    for sampling in ADJUSTED:
        running = RunningAdjustment(sampling, history.prompt_ids, history.stop_ids, history.min_tokens)
        running.extend(history.output_ids)
        scores = sampler.adjust(logits, running, [])
        assert np.array_equal(scores[0].numpy(), reference.adjusted(logits[0].numpy(), sampling, history))


def test_logprobs_are_those_of_the_logits_and_ranked_with_ties_by_id() -> None:
    logits = logits_of(6, 500, 2, tied=True)
    every = torch.log_softmax(logits.double(), dim=-1)
    for row, found in enumerate(sampler.logprobs(logits, [0, 1, 2, 3, 4, 5], 20)):
        ranked = sorted(range(500), key=lambda token_id: (-float(logits[row, token_id]), token_id))[:20]
        assert found.logprob == pytest.approx(float(every[row, row]), abs=1e-12)
        assert list(found.top_ids) == ranked
        assert found.top_logprobs == pytest.approx([float(every[row, token_id]) for token_id in ranked], abs=1e-12)


def test_logprobs_of_the_token_alone_and_of_a_vocabulary_smaller_than_what_is_asked_for() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    alone, all_two = sampler.logprobs(logits, [0], 0)[0], sampler.logprobs(logits, [0], 20)[0]
    assert (alone.top_ids, alone.top_logprobs) == ((), [])
    assert list(all_two.top_ids) == [1, 0]
    assert np.exp(all_two.top_logprobs).sum() == pytest.approx(1)
