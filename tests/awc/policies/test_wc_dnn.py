"""The paper's controller: what it does with a prediction, and that pairs decided together decide alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as changed

from awc.estimators.network import PolicyNetwork
from awc.policies.wc_dnn import MAX_PREDICTED, WcDnnPair, WcDnnPolicy
from awc.policy import WindowChoice
from tests.awc import networks
from tests.awc.reports import SEEN

STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)


def saying(value: float) -> PolicyNetwork:
    return networks.saying(np.array([value]), num_inputs=5)


def random_network(seed: int) -> PolicyNetwork:
    return networks.random_network(seed, 5, np.array([6.0]))


def pair_after(*values: float) -> tuple[WcDnnPair, list[int]]:
    """A pair after predictions, and its window after each."""
    pair = WcDnnPolicy(STOP_AND_WAIT, network=saying(4.0)).for_pair()
    return pair, [pair.settle(SEEN, value).window for value in values]


def test_a_prediction_counts_for_two_fifths_of_the_average_and_the_average_is_rounded() -> None:
    _, windows = pair_after(9.0, 9.0, 9.0)
    assert windows == [6, 7, 8]  # 4 -> 6.0 -> 7.2 -> 7.92


def test_predictions_beyond_the_longest_window_count_as_that() -> None:
    _, windows = pair_after(*[1e9] * 20)
    assert windows[-1] == MAX_PREDICTED


def test_one_prediction_of_one_or_less_does_not_lead_to_cloud_only_but_two_in_a_row_do() -> None:
    _, windows = pair_after(1.0, 4.0, 0.5, 1.0)
    assert 0 not in windows[:3]
    assert windows[3] == 0


def test_it_takes_two_predictions_above_one_to_come_back() -> None:
    pair, windows = pair_after(1.0, 1.0, 5.0, 1.0, 5.0, 5.0)
    assert windows[1:5] == [0, 0, 0, 0]
    assert windows[5] > 0
    assert pair.settle(SEEN, 5.0).is_stop_and_wait, "the scheme is the start's"


def test_cloud_only_lets_the_verifier_run_free() -> None:
    pair, _ = pair_after(1.0, 1.0)
    choice = pair.settle(SEEN, 1.0)
    assert (choice.window, choice.free_run) == (0, True)


def test_before_the_first_tokens_the_start_holds() -> None:
    pair = WcDnnPolicy(STOP_AND_WAIT, network=saying(12.0)).for_pair()
    assert pair.decide(changed(SEEN, tpot_ms=0.0)) == STOP_AND_WAIT


def test_acceptance_that_was_not_observed_stays_what_it_was() -> None:
    pair = WcDnnPolicy(STOP_AND_WAIT, network=saying(4.0)).for_pair()
    before = pair.observe(SEEN)[1]
    assert before == pytest.approx(0.75)
    assert pair.observe(changed(SEEN, matched=0, mismatched=0))[1] == before


def test_pairs_decided_together_decide_what_each_would_alone() -> None:
    policy = WcDnnPolicy(STOP_AND_WAIT, network=random_network(8))
    reports = [changed(SEEN, rtt_ms=float(rtt), matched=rtt % 7, queue=rtt / 300) for rtt in range(1, 200, 7)]
    alone = [policy.for_pair() for _ in reports]
    together = [policy.for_pair() for _ in reports]
    for _ in range(5):
        one_by_one = [pair.decide(seen) for pair, seen in zip(alone, reports, strict=True)]
        assert policy.decide_all(together, reports) == one_by_one
    assert len({choice.window for choice in one_by_one}) > 1


@pytest.mark.parametrize("absurd", [{"rtt_ms": 1e15, "tpot_ms": 1e15}, {"matched": 1 << 16, "mismatched": 0}])
def test_absurd_reports_lead_to_no_window_out_of_bounds(absurd: dict[str, float]) -> None:
    pair = WcDnnPolicy(STOP_AND_WAIT, network=random_network(1)).for_pair()
    for _ in range(10):
        assert 0 <= pair.decide(changed(SEEN, **absurd)).window <= MAX_PREDICTED


def test_a_network_knows_inputs_within_those_it_was_trained_on() -> None:
    network = networks.saying(np.array([1.0]), num_inputs=5, high=1.0)
    inputs = np.array([[0.5] * 5, [1.0] * 5, [0.5, 0.5, 1.1, 0.5, 0.5]])
    assert network.knows(inputs).tolist() == [True, True, False]


def test_a_network_of_wrong_shapes_or_numbers_is_refused() -> None:
    good = saying(1.0)
    with pytest.raises(ValueError, match="w_out must be finite numbers of shape"):
        replace(good, w_out=np.zeros((3, 1)))
    with pytest.raises(ValueError, match="b_out"):
        replace(good, b_out=np.array([np.nan]))


@pytest.mark.parametrize("given", [{"new_weight": 0.0}, {"patience": 0}, {"half_life": 0.0}])
def test_settings_that_cannot_work_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given)).split("_")[0].replace("new", "weight")):
        WcDnnPolicy(STOP_AND_WAIT, network=saying(1.0), **given)  # type: ignore[arg-type]
