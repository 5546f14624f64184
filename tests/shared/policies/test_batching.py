"""The batcher's promises: a row for everybody, guesses only while they pay, costs learnt online."""

from __future__ import annotations

import random

import pytest

from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.guesses import Survival


def flat_then_linear(num_tokens: int) -> float:
    """A cost curve like a small CPU's: nothing saved below 8 tokens, then linear."""
    return 20.0 + max(0, num_tokens - 8) * 1.5


def learnt(curve=flat_then_linear, sessions: int = 1) -> PassCost:
    cost, rng = PassCost(), random.Random(1)
    for _ in range(400):
        num_tokens = rng.choice([1, 2, 3, 5, 8, 12, 16, 24, 40, 64])
        cost.observe(sessions, num_tokens, 256, curve(num_tokens) * rng.uniform(0.95, 1.05))
    return cost


def decoding(num_guesses: int = 0, probability: float = 0.8) -> BatchCandidate:
    chances = [probability ** (k + 1) for k in range(num_guesses)]
    return BatchCandidate(1, chances, cached_tokens=200, waited_ms=5000.0)


def prompt(num_todo: int, waited_ms: float = 0.0) -> BatchCandidate:
    return BatchCandidate(num_todo, chances=[], cached_tokens=0, waited_ms=waited_ms)


def tokens_of(candidates: list[BatchCandidate], budget: int) -> dict[int, int]:
    """Fed tokens by the number of the candidate, of those that are in the pass."""
    return {share.index: share.max_tokens for share in Batcher(budget, 64, PassCost()).form(candidates)}


def test_no_prompt_delays_a_session_that_decodes() -> None:
    assert tokens_of([prompt(500), prompt(500), *[decoding() for _ in range(7)]], budget=7) == dict.fromkeys(
        range(2, 9), 1
    )


def test_a_prompt_comes_in_chunks_only_beside_sessions_that_decode() -> None:
    assert tokens_of([prompt(500)], budget=200) == {0: 200}
    assert tokens_of([prompt(500), decoding()], budget=200) == {0: 64, 1: 1}


def test_a_prompt_without_room_is_not_in_the_pass() -> None:
    assert tokens_of([prompt(64), prompt(64), prompt(64)], budget=100) == {0: 64, 1: 36}


def test_a_short_prompt_goes_before_a_long_one_until_that_has_waited_long_enough() -> None:
    short = prompt(40, waited_ms=200.0)  # 5 ms for each token
    assert tokens_of([prompt(500, waited_ms=1000.0), short], budget=60) == {0: 20, 1: 40}
    assert tokens_of([prompt(500, waited_ms=3000.0), short], budget=60) == {0: 60}


def test_guesses_that_are_likelier_right_than_wrong_go_before_prompts_up_to_half_of_the_room() -> None:
    def bought(num_sessions: int, probability: float) -> tuple[int, int]:
        """Guesses, and tokens of the prompt."""
        candidates = [prompt(500), *[decoding(8, probability) for _ in range(num_sessions)]]
        shares = Batcher(64, 64, PassCost()).form(candidates)
        assert sum(share.max_tokens for share in shares) == 64
        return sum(share.max_guesses for share in shares), shares[0].max_tokens

    assert bought(4, 0.75) == (8, 52)  # 0.75, 0.56 and 0.42
    assert bought(4, 0.4) == (0, 60)
    assert bought(8, 0.95) == (28, 28)


def test_when_the_budget_is_smaller_than_the_sessions_the_oldest_are_served() -> None:
    shares = Batcher(3, 64, PassCost()).form([decoding(4) for _ in range(5)])
    assert [(share.index, share.max_tokens) for share in shares] == [(0, 1), (1, 1), (2, 1)]


def test_guesses_are_free_where_the_curve_is_flat() -> None:
    (share,) = Batcher(64, 64, learnt()).form([decoding(num_guesses=6, probability=0.6)])
    assert share.max_guesses == 6


def test_unlikely_guesses_are_not_bought_where_each_token_costs() -> None:
    cost = learnt(lambda n: 5.0 + 10.0 * n)
    (share,) = Batcher(64, 64, cost).form([decoding(num_guesses=6, probability=0.3)])
    assert share.max_guesses == 0
    (share,) = Batcher(64, 64, cost).form([decoding(num_guesses=6, probability=0.99)])
    assert share.max_guesses == 6


def test_the_likelier_sessions_guesses_are_bought_first() -> None:
    cost = learnt(lambda n: 20.0 if n <= 8 else 20.0 + 20.0 * (n - 8))
    shares = Batcher(64, 64, cost).form([decoding(8, 0.5), decoding(8, 0.95)])
    assert shares[1].max_guesses > 2 * shares[0].max_guesses
    assert 6 <= sum(share.max_tokens for share in shares) <= 9


def test_the_cost_curve_follows_the_machine_within_a_tenth() -> None:
    predicted = learnt().predict(1, [1, 5, 8, 16, 40, 64], 256)
    for num_tokens, milliseconds in zip([1, 5, 8, 16, 40, 64], predicted, strict=True):
        assert milliseconds == pytest.approx(flat_then_linear(num_tokens), rel=0.1)


def test_the_cost_curve_follows_a_machine_that_became_slower() -> None:
    cost = learnt()
    for i in range(1500):
        num_tokens = (1, 4, 8, 16, 32)[i % 5]
        cost.observe(1, num_tokens, 256, 3 * flat_then_linear(num_tokens))
    assert cost.predict(1, [8], 256)[0] == pytest.approx(60.0, rel=0.1)


def test_predictions_never_fall_with_more_tokens_whatever_was_observed() -> None:
    cost, rng = PassCost(), random.Random(2)
    for _ in range(200):
        cost.observe(rng.randint(1, 8), rng.randint(1, 64), rng.randint(0, 5000), rng.uniform(1, 100))
    predicted = list(cost.predict(3, range(1, 100), 700))
    assert predicted == sorted(predicted)
    assert predicted[0] > 0


def test_survival_follows_the_draft_and_starts_at_its_prior() -> None:
    survival, rng = Survival(), random.Random(3)
    assert survival.probability == pytest.approx(0.7)
    for _ in range(400):
        survival.observe(0, mismatched=True) if rng.random() > 0.9 else survival.observe(1, mismatched=False)
    assert survival.probability == pytest.approx(0.9, abs=0.06)
    for _ in range(100):
        survival.observe(0, mismatched=True)
    assert survival.probability < 0.2


@pytest.mark.parametrize(("budget", "chunk"), [(0, 1), (1, 0)])
def test_a_batcher_without_room_is_refused(budget: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Batcher(budget, chunk, PassCost())
