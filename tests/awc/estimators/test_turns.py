"""Draft and target that take turns: how many guesses a turn has, and what it gains."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from msgspec.structs import replace as changed

from awc.estimators.turns import NEARLY, speeds, turn, turn_gain
from awc.estimators.verifier_cost import VerifierCostLine
from shared.protocol.messages import PairReport
from tests.awc.reports import SEEN
from tests.awc.worlds import ANY_REPORT

LOCAL = changed(SEEN, num_sessions=1, batch=1.0, draft_ms=6.5, pass_ms=13.0, rtt_ms=3.0, shares_machine=True)
FLAT = VerifierCostLine()


@given(ANY_REPORT)
def test_a_turn_is_the_shortest_that_is_nearly_as_fast_as_the_best(seen: PairReport) -> None:
    found = speeds(0.8, seen.rtt_ms, seen.pass_ms, seen.draft_ms)
    window = turn(0.8, seen)
    assert found[window] >= NEARLY * found[1:].max()
    assert window == 1 or found[1:window].max() < NEARLY * found[1:].max()
    assert math.isfinite(turn_gain(0.8, seen, 0.01, FLAT))


def test_turns_are_longer_the_more_guesses_are_right_and_the_longer_the_link() -> None:
    assert [turn(acceptance, LOCAL) for acceptance in (0.4, 0.8, 0.9, 0.96)] == [1, 2, 3, 4]
    assert turn(0.9, changed(LOCAL, rtt_ms=40.0)) > turn(0.9, LOCAL)


def test_the_gain_is_that_of_tokens_over_time_less_the_price_of_unused_guesses() -> None:
    a, window = 0.9, turn(0.9, LOCAL)
    tokens = sum(a**k for k in range(window + 1))
    speed_up = tokens / (3.0 + 13.0 + window * 6.5) * 13.0
    assert turn_gain(a, LOCAL, 0.0, FLAT) == pytest.approx(math.log(speed_up))
    unused = window - (tokens - 1)
    assert turn_gain(a, LOCAL, 0.1, FLAT) == pytest.approx(math.log(speed_up) - 0.1 * unused / tokens)
