"""The coupled draw in numpy: noise, distribution, order of the filters, ties (docs/sampling.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from shared.protocol.messages import Sampling
from shared.protocol.sampling import draw, gumbel, kept_ids, uniform

GOLDEN = json.loads((Path(__file__).parent / "golden_noise.json").read_text())
LOGITS = np.array([1.5, -0.3, 0.7, 2.1, 0.0, -2.0, 1.1, 0.4], dtype=np.float32)
NUM_DRAWS = 20_000


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def expected_shares(sampling: Sampling) -> np.ndarray:
    """The distribution that temperature, top-k, top-p and min-p define, worked out the long way."""
    shares = softmax(LOGITS.astype(float) / sampling.temperature)
    order = np.argsort(-shares, kind="stable")
    if sampling.top_k:
        shares[order[sampling.top_k :]] = 0
        shares /= shares.sum()
    before = np.cumsum(shares[order]) - shares[order]
    shares[order[before >= sampling.top_p]] = 0
    shares[shares < sampling.min_p * shares.max()] = 0
    return shares / shares.sum()


def p_value(token_ids: list[int], shares: np.ndarray) -> float:
    counts = np.bincount(token_ids, minlength=len(shares))
    assert not counts[shares == 0].any(), "a dropped token was drawn"
    possible = shares > 0
    return float(chisquare(counts[possible], len(token_ids) * shares[possible]).pvalue)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden['seed']}@{golden['position']}")
def test_uniform_noise_has_the_golden_bits(golden: dict) -> None:
    u = uniform(golden["seed"], golden["position"], np.array(golden["token_ids"]))
    assert [value.hex() for value in u.tolist()] == golden["u"]


def test_noise_of_a_token_does_not_depend_on_the_other_tokens_asked_for() -> None:
    everything = gumbel(7, 11, np.arange(50_000))
    some = np.array([49_999, 3, 17, 4096])
    assert np.array_equal(gumbel(7, 11, some), everything[some])


def test_noise_is_uniform_and_unrelated_between_neighbouring_tokens_positions_and_seeds() -> None:
    ids = np.arange(200_000)
    base = uniform(3, 5, ids)
    assert abs(base.mean() - 0.5) < 4 / np.sqrt(12 * len(ids))
    bins = [np.bincount((uniform(3, position, ids[:20_000]) * 64).astype(int)) for position in range(50)]
    assert kstest([chisquare(counts).pvalue for counts in bins], "uniform").pvalue > 1e-3
    for other in (np.roll(base, 1), uniform(3, 6, ids), uniform(4, 5, ids), uniform(-3, 5, ids)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(len(ids))


def test_noise_is_finite_at_both_ends_of_the_uniform_range() -> None:
    ends = np.array([0.5, 2.0**52 - 0.5]) * 2.0**-52
    assert np.isfinite(-np.log(-np.log(ends))).all()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.6),
        Sampling(1.7, top_k=4),
        Sampling(1.0, top_p=0.8),
        Sampling(1.3, min_p=0.2),
        Sampling(0.9, top_k=6, top_p=0.9, min_p=0.05),
    ],
    ids=str,
)
def test_draws_over_positions_and_seeds_follow_the_filtered_softmax(sampling: Sampling) -> None:
    def with_seed(seed: int) -> Sampling:
        return Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, seed)

    shares = expected_shares(sampling)
    over_positions = [draw(LOGITS, with_seed(1), position) for position in range(NUM_DRAWS)]
    over_seeds = [draw(LOGITS, with_seed(seed), 9) for seed in range(NUM_DRAWS)]
    assert p_value(over_positions, shares) > 1e-3
    assert p_value(over_seeds, shares) > 1e-3


def test_the_distribution_test_rejects_a_known_wrong_noise() -> None:
    def wrong_draw(position: int) -> int:
        return int(np.argmax(LOGITS - np.log(uniform(1, position, np.arange(len(LOGITS))))))  # exponential noise

    token_ids = [wrong_draw(position) for position in range(NUM_DRAWS)]
    assert p_value(token_ids, expected_shares(Sampling(1.0))) < 1e-6


@pytest.mark.parametrize("temperature", [0.05, 0.8, 1.0, 3.0, 50.0])
def test_a_draw_without_filters_is_the_argmax_of_all_noisy_scores(temperature: float) -> None:
    generator = np.random.default_rng(4)
    for position in range(200):
        logits = (generator.normal(size=3000) * generator.choice([0.01, 1, 4])).astype(np.float32)
        logits[generator.integers(3000, size=9)] = -np.inf
        scores = (logits.astype(np.float64) - float(logits.max())) / temperature
        expected = int(np.argmax(scores + gumbel(5, position, np.arange(3000))))
        assert draw(logits, Sampling(temperature, seed=5), position) == expected


def test_greedy_is_top_k_1_is_argmax_also_among_equal_logits() -> None:
    rng = np.random.default_rng(0)
    for position in range(200):
        logits = rng.integers(-3, 3, size=50).astype(np.float32)
        first_best = int(np.flatnonzero(logits == logits.max())[0])
        assert draw(logits, Sampling(0.0), position) == first_best
        assert draw(logits, Sampling(1.3, top_k=1, seed=position), position) == first_best


def test_a_temperature_next_to_zero_draws_the_argmax() -> None:
    assert draw(LOGITS, Sampling(5e-324), 0) == draw(LOGITS, Sampling(1e-9), 0) == 3


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=3), [0, 2, 3]),  # of the equal third and fourth the lower id
        (Sampling(1.0, top_k=50), [0, 1, 2, 3, 4]),
        (Sampling(1.0, top_p=0.49), [2]),  # the token that completes the mass stays
        (Sampling(1.0, top_p=0.51), [2, 3]),
        (Sampling(1.0, top_p=0.70), [0, 2, 3]),
        (Sampling(1.0, min_p=0.24), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=2, top_p=0.70), [2]),  # 8/11 of what top-k left
        (Sampling(1.0, top_p=0.70, min_p=0.26), [2, 3]),
        (Sampling(1.0, min_p=1.0), [2]),
        (Sampling(1.0, min_p=1e-300), [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_filters_keep_what_their_order_and_ties_say(sampling: Sampling, kept: list[int]) -> None:
    shares = np.array([2, 2, 8, 3, 1]) / 16
    assert kept_ids(np.log(shares / shares.max()), sampling).tolist() == kept


def test_filtering_through_candidates_equals_sorting_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        scores = np.round(rng.normal(size=400) * rng.choice([0.01, 1, 8]), rng.integers(1, 5))
        scores -= scores.max()
        top_k, top_p = int(rng.choice([0, 0, 2, 40])), float(rng.choice([0.999, 0.9, 0.3]))
        sampling = Sampling(1.0, top_k, top_p, float(rng.choice([0, 0, 0.1])))
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        weights = np.exp(scores[order])
        mass = np.cumsum(weights)
        kept = order[(mass - weights < top_p * mass[-1]) & (weights >= sampling.min_p)]
        assert kept_ids(scores, sampling).tolist() == sorted(kept.tolist())


@pytest.mark.parametrize("logits", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, top_p=0.9)], ids=str)
def test_logits_without_a_finite_best_are_refused(logits: list[float], sampling: Sampling) -> None:
    with pytest.raises(ValueError, match="position 4"):
        draw(np.array(logits, dtype=np.float32), sampling, 4)


def test_a_banned_token_is_never_drawn() -> None:
    logits = LOGITS.copy()
    logits[3] = -np.inf
    assert 3 not in {draw(logits, Sampling(5.0), position) for position in range(500)}
