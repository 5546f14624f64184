"""The shipped weights: they match their card and choose sensible windows."""

from __future__ import annotations

from msgspec.structs import replace as changed

from awc.estimators.features import WINDOW_INPUTS
from awc.estimators.network import read_network
from awc.policies import wc_dnn
from awc.policies.wc_dnn import WcDnnPair, WcDnnPolicy
from awc.policy import WindowChoice
from awc_training.cards import read_card
from shared.protocol.messages import PairReport
from tests.awc.reports import SEEN

STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)
UNHELPFUL = changed(SEEN, matched=1, mismatched=7, draft_ms=60.0, pass_ms=20.0, tpot_ms=25.0, rtt_ms=5.0)
GOOD = changed(SEEN, drafted=20, matched=19, mismatched=1, draft_ms=6.0, pass_ms=60.0, rtt_ms=20.0, tpot_ms=25.0)


def settled(pair: WcDnnPair, seen: PairReport) -> WindowChoice:
    for _ in range(40):
        choice = pair.decide(seen)
        seen = changed(seen, window=choice.window)
    return choice


def test_the_network_has_the_inputs_and_the_size_of_its_card() -> None:
    network, card = read_network(wc_dnn.WEIGHTS), read_card(wc_dnn.WEIGHTS.with_suffix(".json"))
    arrays = (network.w_in, network.b_in, network.w1, network.b1, network.w2, network.b2, network.w_out, network.b_out)
    assert card.inputs == WINDOW_INPUTS
    assert network.w_in.shape == (len(WINDOW_INPUTS), card.hidden)
    assert network.b_out.shape == (1,)
    assert sum(array.size for array in arrays) == card.num_parameters
    assert card.mean_error < card.mean_error_of_median


def test_the_paper_s_network_drafts_where_guesses_are_right_and_goes_cloud_only_where_they_are_slow_and_wrong() -> None:
    assert settled(WcDnnPolicy(STOP_AND_WAIT).for_pair(), GOOD).window > 0
    assert settled(WcDnnPolicy(STOP_AND_WAIT).for_pair(), changed(UNHELPFUL, queue=0.9, tpot_ms=90.0)).window == 0
