"""Which modes of a cell go on in a race."""

from __future__ import annotations

import random

import pytest

from benchmarks.harness.latency import RequestSample
from benchmarks.policies.plan import ADAPTIVE, TARGET_ONLY
from benchmarks.policies.rounds import LEAST_ROUNDS, BenchRound, best_rival, contenders, ratio

NUM_TOKENS = 11
TPOT_MS = {TARGET_ONLY.name: 40.0, "fastest": 20.0, "near": 20.4, "behind": 24.0, ADAPTIVE.name: 30.0}


def rounds(num: int, noise: float = 0.02) -> list[BenchRound]:
    """Prompts of different difficulty, the same for all modes, and a little noise."""
    drawn = random.Random(3)
    made = []
    for _ in range(num):
        hard = drawn.uniform(0.5, 2.0)
        times = {mode: ms * hard * drawn.uniform(1 - noise, 1 + noise) for mode, ms in TPOT_MS.items()}
        samples = {mode: [sample(ms)] for mode, ms in times.items()}
        made.append(BenchRound(samples, {}))
    return made


def sample(tpot_ms: float, status: str = "ok") -> RequestSample:
    return RequestSample(0, 0.0, 0.0, 0.05, 0.05 + tpot_ms * (NUM_TOKENS - 1) / 1e3, status, NUM_TOKENS)


def test_a_mode_that_is_surely_slower_leaves_and_one_that_may_be_the_fastest_stays() -> None:
    assert contenders(rounds(10), list(TPOT_MS)) == [mode for mode in TPOT_MS if mode != "behind"]


def test_nobody_leaves_after_few_rounds() -> None:
    assert contenders(rounds(LEAST_ROUNDS - 1), list(TPOT_MS)) == list(TPOT_MS)


def test_a_mode_that_is_slower_in_half_of_its_rounds_stays() -> None:
    made = rounds(10)
    for number, each in enumerate(made):
        each.samples["behind"] = [sample(each.samples["fastest"][0].tpot_ms * (0.5, 2.6)[number % 2])]
    assert contenders(made, list(TPOT_MS)) == list(TPOT_MS)


def test_with_a_failed_answer_which_voids_the_cell_all_modes_stay() -> None:
    made = rounds(10)
    made[2].samples["near"] = [sample(20.0, status="503")]
    assert contenders(made, list(TPOT_MS)) == list(TPOT_MS)


def test_a_ratio_uses_only_rounds_that_both_modes_have() -> None:
    made = rounds(10, noise=0.0)
    for each in made[4:]:
        del each.samples["behind"]
    made[9].samples["fastest"] = [sample(500.0)]
    assert ratio(made, "behind", "fastest").value == pytest.approx(24 / 20)


def test_the_best_rival_is_the_fastest_but_for_adaptive() -> None:
    made = rounds(10)
    assert best_rival(made, list(TPOT_MS)) == "fastest"
    for each in made:
        each.samples[ADAPTIVE.name] = [sample(1.0)]
    assert best_rival(made, list(TPOT_MS)) == "fastest"
