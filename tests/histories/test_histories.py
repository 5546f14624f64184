"""Histories in virtual time: gateways, verifiers and drafters against each other, under faults (docs/protocol.md)."""

from __future__ import annotations

import pytest

from tests.histories.history import play
from tests.histories.schedule import make

NUM_PORTIONS, PORTION = 6, 50

pytestmark = pytest.mark.timeout(120)  # a portion takes a second: a history that hardly goes on fails soon


@pytest.mark.parametrize("portion", range(NUM_PORTIONS))
def test_in_every_history_answers_are_the_target_s_own_and_nothing_is_left(portion: int) -> None:
    outcomes = [play(make(seed)) for seed in range(portion * PORTION, (portion + 1) * PORTION)]
    broken = [f"{outcome.command}: {outcome.violation}" for outcome in outcomes if outcome.violation]
    assert not broken, "\n".join(broken)
    assert sum(outcome.num_answers for outcome in outcomes) > PORTION


def test_a_seed_gives_the_same_history_each_time() -> None:
    for seed in range(5):
        first, second = [], []
        assert play(make(seed), first) == play(make(seed), second)
        assert first == second
