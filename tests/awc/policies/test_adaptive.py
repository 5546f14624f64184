"""The adaptive policy: when it changes its choice, and how measurements correct the predictions of the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec.structs import replace as changed

from awc.estimators.features import CHOICE_INPUTS
from awc.estimators.network import PolicyNetwork
from awc.policies.adaptive import CHOICES, LONGEST, MOST_SESSIONS, AdaptivePair, AdaptivePolicy, pipeline
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport
from tests.awc import networks
from tests.awc.reports import SEEN

FAST, SLOW = CHOICES[4], CHOICES[2]


def predicting(worth: dict[WindowChoice, float], *, is_known: bool = True) -> PolicyNetwork:
    """A network that says what each choice is worth, and -1 of all others."""
    outputs = np.array([worth.get(choice, -1.0) for choice in CHOICES])
    return networks.saying(outputs, len(CHOICE_INPUTS), high=1e3 if is_known else -1e2)


def choice_after(pair: AdaptivePair, *reports: PairReport) -> WindowChoice:
    for seen in reports:
        choice = pair.decide(seen)
    return choice


def test_a_choice_with_enough_expected_gain_twice_in_a_row_is_taken() -> None:
    pair = AdaptivePolicy(CHOICES[0], network=predicting({FAST: 0.0})).for_pair()
    assert pair.decide(SEEN) == CHOICES[0]
    assert pair.decide(SEEN) == FAST


def test_a_gain_below_the_margin_changes_nothing() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.02})).for_pair()
    assert choice_after(pair, *[SEEN] * 20) == SLOW


def test_a_choice_of_the_policy_is_left_for_a_larger_gain_than_the_start() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.04})).for_pair()
    assert choice_after(pair, SEEN, SEEN) == FAST
    pair.penalties[CHOICES.index(FAST)] = 0.08
    assert choice_after(pair, SEEN, SEEN) == FAST
    pair.penalties[CHOICES.index(FAST)] = 0.1
    assert choice_after(pair, SEEN, SEEN) == SLOW
    pair.penalties[CHOICES.index(FAST)] = 0.0
    assert choice_after(pair, SEEN, SEEN) == SLOW, "by now it was chosen"


def test_without_an_expected_gain_of_drafting_the_pair_is_target_only() -> None:
    worth = {FAST: 0.0, CHOICES[0]: -0.01}
    assert choice_after(AdaptivePolicy(FAST, network=predicting(worth)).for_pair(), *[SEEN] * 2) == CHOICES[0]
    pair = AdaptivePolicy(CHOICES[0], network=predicting(worth | {CHOICES[0]: -0.025})).for_pair()
    assert choice_after(pair, *[SEEN] * 20) == CHOICES[0], "coming back takes the margin"


def test_a_start_that_is_none_of_the_choices_is_left_for_one_of_them() -> None:
    pair = AdaptivePolicy(WindowChoice(7, 3, free_run=True), network=predicting({FAST: 0.0})).for_pair()
    assert choice_after(pair, SEEN, SEEN) == FAST


def test_before_the_first_tokens_and_without_sessions_the_start_holds() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0})).for_pair()
    silent = [changed(SEEN, tpot_ms=0.0), changed(SEEN, pass_ms=0.0), changed(SEEN, num_sessions=0)]
    assert choice_after(pair, *silent * 5) == DEFAULT_CHOICE


def test_a_choice_that_made_tokens_slower_is_given_up_and_tried_again_later() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1})).for_pair()
    before, after = changed(SEEN, window=SLOW.window), changed(SEEN, window=FAST.window, tpot_ms=40.0)
    assert choice_after(pair, before, before) == FAST, "it is not known yet how fast it was before"
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12).for_pair()
    assert choice_after(pair, *[before] * 12) == FAST
    assert choice_after(pair, *[after] * 30) == SLOW
    assert FAST in {pair.decide(before) for _ in range(2000)}


@pytest.mark.parametrize("world", [{"draft_ms": 30.0}, {"rtt_ms": 120.0}, {"pass_ms": 90.0}], ids=str)
def test_a_choice_is_not_penalised_for_a_change_of_its_surroundings(world: dict[str, float]) -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12).for_pair()
    assert choice_after(pair, *[changed(SEEN, window=SLOW.window)] * 12) == FAST
    assert choice_after(pair, *[changed(SEEN, window=FAST.window, tpot_ms=40.0, **world)] * 30) == FAST


def test_a_choice_is_not_penalised_for_a_change_of_the_acceptance() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12).for_pair()
    right = changed(SEEN, window=SLOW.window, matched=9, mismatched=1)
    wrong = changed(SEEN, window=FAST.window, tpot_ms=40.0, matched=3, mismatched=7)
    assert choice_after(pair, *[right] * 12) == FAST
    assert choice_after(pair, *[wrong] * 30) == FAST


def test_a_choice_that_a_wrapper_shortens_is_compared_too() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12).for_pair()
    assert choice_after(pair, *[changed(SEEN, window=SLOW.window)] * 12) == FAST
    assert choice_after(pair, *[changed(SEEN, window=FAST.window - 2, tpot_ms=40.0)] * 30) == SLOW


def test_reports_just_behind_a_change_are_not_compared() -> None:
    policy = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12, settling=3, compared=8)
    pair = policy.for_pair()
    before, after = changed(SEEN, window=SLOW.window), changed(SEEN, window=FAST.window)
    choice_after(pair, *[before] * 12)
    slow_at_first = [changed(after, tpot_ms=90.0)] * 3 + [changed(after, tpot_ms=22.0)] * 60
    assert {pair.decide(seen) for seen in slow_at_first} == {FAST}


def test_a_choice_whose_expected_gain_came_stays() -> None:
    pair = AdaptivePolicy(SLOW, network=predicting({FAST: 0.0, SLOW: -0.1}), patience=12).for_pair()
    before, after = changed(SEEN, window=SLOW.window), changed(SEEN, window=FAST.window, tpot_ms=20.0)
    choice_after(pair, *[before] * 12)
    assert {pair.decide(after) for _ in range(500)} == {FAST}


def test_inputs_unlike_those_of_training_lead_to_the_window_of_the_pipeline() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0}, is_known=False)).for_pair()
    assert choice_after(pair, *[SEEN] * 20) == pipeline(SEEN, DEFAULT_CHOICE.chunk, 1.0)


def test_more_sessions_on_a_drafter_than_in_training_lead_to_the_window_of_the_pipeline() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0})).for_pair()
    shared = changed(SEEN, num_sessions=MOST_SESSIONS + 1, draft_ms=30.0, rtt_ms=200.0)
    assert choice_after(pair, *[shared] * 20) == pipeline(shared, DEFAULT_CHOICE.chunk, 1.0)
    assert choice_after(pair, *[changed(SEEN, num_sessions=MOST_SESSIONS, draft_ms=24.0)] * 20) == FAST


@pytest.mark.parametrize("is_known", [True, False])
def test_an_outpaced_drafter_does_not_draft_whatever_is_predicted(is_known: bool) -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0}, is_known=is_known)).for_pair()
    outpaced = changed(SEEN, num_sessions=5, draft_ms=45.0, pass_ms=40.0)
    assert {choice_after(pair, *[outpaced] * 2)} | {pair.decide(outpaced) for _ in range(100)} == {CHOICES[0]}
    assert choice_after(pair, *[changed(outpaced, draft_ms=30.0)] * 20).window > 0


def test_a_window_of_the_pipeline_that_is_near_the_present_one_changes_nothing() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0}, is_known=False)).for_pair()
    first = choice_after(pair, *[SEEN] * 20)
    near, far = changed(SEEN, rtt_ms=50.0), changed(SEEN, rtt_ms=90.0)
    assert pipeline(near, 2, 1.0).window == first.window + 2
    assert choice_after(pair, *[near] * 20) == first
    assert choice_after(pair, *[far] * 20) == pipeline(far, 2, 1.0) != first


def test_a_window_of_the_pipeline_that_makes_it_slower_is_halved_and_grows_again() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=predicting({FAST: 0.0}, is_known=False)).for_pair()
    whole = choice_after(pair, *[changed(SEEN, window=DEFAULT_CHOICE.window)] * 20)
    slower = changed(SEEN, window=whole.window, tpot_ms=40.0)
    half = choice_after(pair, *[slower] * 25)
    assert half.window < 0.6 * whole.window
    faster = [changed(SEEN, window=half.window)] * 2000
    assert max(pair.decide(seen).window for seen in faster) > half.window


def test_the_pipeline_holds_what_is_drafted_until_the_first_verdict() -> None:
    assert pipeline(SEEN, 2, 1.0) == WindowChoice(13, 2, free_run=True)  # (30 + 60) ms / 10 ms, and two chunks
    assert pipeline(changed(SEEN, draft_ms=30.0), 2, 1.0).window == 7
    assert pipeline(changed(SEEN, rtt_ms=1e15), 2, 1.0).window == LONGEST


def test_the_estimated_acceptance_rises_while_nothing_is_drafted() -> None:
    pair = AdaptivePolicy(CHOICES[0], network=predicting({CHOICES[0]: 0.0})).for_pair()
    rates = [pair.observe(SEEN)[0]]
    rates += [pair.observe(changed(SEEN, matched=0, mismatched=0))[0] for _ in range(400)]
    assert rates == sorted(rates)
    assert rates[-1] > 0.9


def test_pairs_decided_together_decide_what_each_would_alone() -> None:
    network = networks.random_network(2, len(CHOICE_INPUTS), np.zeros(len(CHOICES)))
    one, other = (AdaptivePolicy(DEFAULT_CHOICE, network=network) for _ in range(2))
    reports = [changed(SEEN, rtt_ms=float(rtt), matched=rtt % 7, pass_ms=3.0 * rtt) for rtt in range(1, 900, 31)]
    alone, together = [one.for_pair() for _ in reports], [other.for_pair() for _ in reports]
    for _ in range(20):
        one_by_one = [pair.decide(seen) for pair, seen in zip(alone, reports, strict=True)]
        assert other.decide_all(together, reports) == one_by_one
    assert len(set(one_by_one)) > 1


@pytest.mark.parametrize(
    "absurd",
    [
        {"rtt_ms": 1e15, "tpot_ms": 1e15, "pass_ms": 1e15, "draft_ms": 1e15},
        {"matched": 1 << 16, "mismatched": 0, "batch": 1e15, "pass_tokens": 1e15},
        {"draft_ms": 0.0, "pass_ms": 5e-324, "tpot_ms": 5e-324},
        {"num_sessions": 1 << 48},
    ],
    ids=str,
)
def test_absurd_reports_lead_to_no_window_out_of_bounds(absurd: dict[str, float]) -> None:
    network = networks.random_network(1, len(CHOICE_INPUTS), np.zeros(len(CHOICES)))
    pair = AdaptivePolicy(DEFAULT_CHOICE, network=network).for_pair()
    for _ in range(30):
        assert 0 <= pair.decide(changed(SEEN, **absurd)).window <= MAX_WINDOW


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"margin": -1.0}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"first_margin": 0.01}, "first_margin"),
        ({"first_margin": math.nan}, "first_margin"),
        ({"patience": 0}, "patience"),
        ({"half_life": 0.0}, "half_life"),
        ({"forgetting": 1.5}, "forgetting"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdaptivePolicy(DEFAULT_CHOICE, network=predicting({}), **given)  # type: ignore[arg-type]


def test_a_network_for_other_choices_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{len(CHOICES)} outputs"):
        AdaptivePolicy(DEFAULT_CHOICE, network=networks.saying(np.zeros(3), len(CHOICE_INPUTS)))
