"""The formulas of the sliding window: limits that are known, and directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from awc.estimators.sliding import (
    guesses_in_flight,
    net_gain,
    num_bought,
    num_overtaking,
    paying_depth,
    sliding_guesses,
    sliding_tokens,
    speedup,
)
from awc.estimators.verifier_cost import VerifierCostLine
from shared.protocol.messages import MAX_WINDOW
from tests.awc.reports import SEEN

FAST = changed(SEEN, draft_ms=4.0, pass_ms=40.0, rtt_ms=10.0)
RATES = st.floats(0, 1)
FREE = VerifierCostLine()  # a further token costs nothing
COSTLY = VerifierCostLine()
for num_tokens in range(8, 64):
    COSTLY.observe(num_tokens, 30.0 + 1.0 * num_tokens)


def test_the_depth_is_the_last_guess_that_is_likely_enough_once_the_verifier_is_overtaken() -> None:
    assert 0.8 ** (paying_depth(0.8, FAST, 0.05) - 1) == pytest.approx(0.05)
    assert paying_depth(0.8, FAST, 0.0) == MAX_WINDOW
    far = changed(FAST, rtt_ms=284.0)
    assert num_overtaking(far) == pytest.approx(8.0)
    assert paying_depth(0.8, far, 0.05) == pytest.approx(paying_depth(0.8, FAST, 0.05) + 7)
    assert num_overtaking(changed(FAST, draft_ms=50.0)) == MAX_WINDOW


def test_a_pass_buys_guesses_while_they_gain_more_than_they_cost_all_sessions() -> None:
    seen = changed(SEEN, batch=10.0, pass_ms=50.0)
    cost = 10 * 2.0 / 50.0
    k = num_bought(0.9, seen, 2.0)
    assert 0.9**k == pytest.approx(cost / (1 - 0.9 + cost))
    assert num_bought(0.9, seen, 0.0) == MAX_WINDOW
    assert num_bought(0.5, seen, 2.0) < k < num_bought(0.9, seen, 0.1)


def test_the_pipeline_holds_what_is_made_until_the_first_verdict_and_two_chunks() -> None:
    assert guesses_in_flight(FAST, MAX_WINDOW, 2) == pytest.approx((10 + 80) / 4 + 4)
    assert guesses_in_flight(FAST, 1.0, 2) == pytest.approx((10 + 80) / 20 + 4), "a pass takes two tokens"


def test_hardly_wrong_guesses_bring_a_token_for_each_draft_step() -> None:
    assert speedup(0.999, FAST, 10.0) == pytest.approx(10.0, rel=0.05)


def test_a_drafter_slower_than_the_target_brings_nothing() -> None:
    assert speedup(0.9, changed(FAST, draft_ms=40.0), 1.0) == 1.0
    assert net_gain(0.9, changed(FAST, draft_ms=40.0), 8, 0.01, FREE) < 0


def test_wrong_guesses_over_a_long_link_never_overtake_the_verifier() -> None:
    assert speedup(0.2, changed(FAST, rtt_ms=400.0), 10.0) == pytest.approx(1.0)
    assert net_gain(0.2, changed(FAST, rtt_ms=400.0), 8, 0.01, FREE) < 0


def test_the_gain_falls_with_the_round_trip_and_the_price_and_rises_with_acceptance() -> None:
    gains = [net_gain(0.8, changed(FAST, rtt_ms=rtt), 16, 0.01, FREE) for rtt in (10.0, 60.0, 120.0, 240.0)]
    assert gains == sorted(gains, reverse=True)
    assert (
        net_gain(0.8, FAST, 16, 0.05, FREE) < net_gain(0.8, FAST, 16, 0.01, FREE) < net_gain(0.9, FAST, 16, 0.01, FREE)
    )
    assert net_gain(0.8, FAST, 0, 0.01, FREE) == 0.0


def test_guesses_that_make_passes_longer_gain_less() -> None:
    assert net_gain(0.8, FAST, 16, 0.01, COSTLY) < net_gain(0.8, FAST, 16, 0.01, FREE)
    assert net_gain(0.8, changed(FAST, batch=32.0), 16, 0.01, COSTLY) < net_gain(0.8, FAST, 16, 0.01, COSTLY)


def test_of_all_windows_target_only_has_one_token_a_pass_and_longer_ones_never_less() -> None:
    tokens = sliding_tokens(0.8, FAST)
    assert tokens[0] == 1.0
    assert (np.diff(tokens) >= 0).all()
    assert tokens[MAX_WINDOW] == pytest.approx(speedup(0.8, FAST, 10.0))
    assert sliding_guesses(FAST)[MAX_WINDOW] == pytest.approx(10.0)


@given(RATES, st.floats(0, 1e15), st.floats(0, 1e15), st.floats(0, 1e15), st.integers(0, MAX_WINDOW))
def test_results_are_finite_for_any_times(rate: float, rtt: float, verify: float, draft: float, window: int) -> None:
    seen = changed(SEEN, rtt_ms=rtt, pass_ms=verify, draft_ms=draft)
    assert math.isfinite(net_gain(rate, seen, window, 0.01, COSTLY))
    assert math.isfinite(guesses_in_flight(seen, num_bought(rate, seen, 1.0), 2))
    assert np.isfinite(sliding_tokens(rate, seen)).all()


def test_guesses_lengthen_passes_by_a_smaller_share_while_prompts_fill_them() -> None:
    def lengthened(pass_ms: float) -> float:
        seen = changed(FAST, pass_ms=pass_ms)
        return net_gain(0.8, seen, 16, 0.01, FREE) - net_gain(0.8, seen, 16, 0.01, COSTLY)

    assert 0 < lengthened(400.0) < lengthened(40.0) / 2
