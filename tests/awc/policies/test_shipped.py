"""The shipped weights: they match their cards and choose sensible windows."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from awc.estimators.features import CHOICE_INPUTS, WINDOW_INPUTS
from awc.estimators.network import read_network
from awc.policies import adaptive, wc_dnn
from awc.policies.adaptive import CHOICES, AdaptivePolicy
from awc.policies.wc_dnn import WcDnnPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc_training.cards import read_card
from shared.protocol.messages import PairReport
from tests.awc.reports import SEEN

STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)
UNHELPFUL = changed(SEEN, matched=1, mismatched=7, draft_ms=60.0, pass_ms=20.0, tpot_ms=25.0, rtt_ms=5.0)
GOOD = changed(SEEN, drafted=20, matched=19, mismatched=1, draft_ms=6.0, pass_ms=60.0, rtt_ms=20.0, tpot_ms=25.0)


def settled(pair: adaptive.AdaptivePair | wc_dnn.WcDnnPair, seen: PairReport) -> WindowChoice:
    for _ in range(40):
        choice = pair.decide(seen)
        seen = changed(seen, window=choice.window)
    return choice


@pytest.mark.parametrize(
    ("path", "inputs", "num_outputs"),
    [(wc_dnn.WEIGHTS, WINDOW_INPUTS, 1), (adaptive.WEIGHTS, CHOICE_INPUTS, len(CHOICES))],
    ids=["wc-dnn", "adaptive"],
)
def test_a_network_has_the_inputs_and_the_size_of_its_card(
    path: Path, inputs: tuple[str, ...], num_outputs: int
) -> None:
    network, card = read_network(path), read_card(path.with_suffix(".json"))
    arrays = (network.w_in, network.b_in, network.w1, network.b1, network.w2, network.b2, network.w_out, network.b_out)
    assert card.inputs == inputs
    assert network.w_in.shape == (len(inputs), card.hidden)
    assert network.b_out.shape == (num_outputs,)
    assert sum(array.size for array in arrays) == card.num_parameters
    assert card.mean_error < card.mean_error_of_median


def test_the_paper_s_network_drafts_where_guesses_are_right_and_goes_cloud_only_where_they_are_slow_and_wrong() -> None:
    assert settled(WcDnnPolicy(STOP_AND_WAIT).for_pair(), GOOD).window > 0
    assert settled(WcDnnPolicy(STOP_AND_WAIT).for_pair(), changed(UNHELPFUL, queue=0.9, tpot_ms=90.0)).window == 0


def test_adaptive_drafts_further_ahead_on_a_longer_link() -> None:
    near, far = (settled(AdaptivePolicy(DEFAULT_CHOICE).for_pair(), changed(GOOD, rtt_ms=rtt)) for rtt in (5.0, 100.0))
    assert far.window >= near.window >= 4


def test_adaptive_does_not_draft_with_wrong_guesses_on_a_slow_shared_drafter() -> None:
    unhelpful = changed(UNHELPFUL, num_sessions=8, batch=8.0)
    pair = AdaptivePolicy(DEFAULT_CHOICE).for_pair()
    seen, windows = unhelpful, []
    for _ in range(200):
        windows.append(pair.decide(seen).window)
        seen = changed(unhelpful, window=0, drafted=0, matched=0, mismatched=0) if windows[-1] == 0 else unhelpful
    assert windows.count(0) > 150, windows
