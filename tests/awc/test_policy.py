"""Bounds of window choices, the static policy, plausible reports."""

import pytest

from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, MAX_JUDGED, WindowChoice, is_plausible
from awc.registry import POLICIES
from shared.protocol.messages import MAX_WINDOW, PairReport

REPORT = PairReport(
    verifier_id="cloud.0123456789ab",
    num_sessions=1,
    window=8,
    drafted=20,
    matched=12,
    mismatched=2,
    late=1,
    discarded=5,
    draft_ms=10.0,
    rtt_ms=20.0,
    queue=0.5,
    tpot_ms=30.0,
    context=100,
)


def changed(**counts: int) -> PairReport:
    fields = {name: getattr(REPORT, name) for name in REPORT.__struct_fields__}
    return PairReport(**(fields | counts))


@pytest.mark.parametrize(("window", "chunk"), [(-1, 1), (MAX_WINDOW + 1, 1), (8, 0), (8, 9), (0, 2)])
def test_a_choice_outside_the_bounds_cannot_be_made(window: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        WindowChoice(window, chunk, True)


@pytest.mark.parametrize("min_confidence", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_cannot_be_chosen(min_confidence: float) -> None:
    with pytest.raises(ValueError, match="must be 0 to 1"):
        WindowChoice(8, 2, True, min_confidence)


@pytest.mark.parametrize(("window", "chunk"), [(0, 1), (1, 1), (8, 8), (MAX_WINDOW, MAX_WINDOW)])
def test_every_choice_within_the_bounds_can_be_made(window: int, chunk: int) -> None:
    assert WindowChoice(window, chunk, False).window == window


def test_the_default_choice_loses_nothing_with_free_run() -> None:
    assert WindowChoice(window=8, chunk=2, free_run=True) == DEFAULT_CHOICE


def test_the_static_policy_answers_the_same_choice_whatever_it_sees() -> None:
    start = WindowChoice(window=4, chunk=4, free_run=False, min_confidence=0.4)
    pair = StaticPolicy(start).for_pair()
    assert {pair.decide(changed(matched=0, mismatched=count)) for count in (0, 5, 1 << 48)} == {start}


def test_every_policy_is_named_as_in_the_registry_and_starts_at_the_choice_it_is_given() -> None:
    for name, make in POLICIES.items():
        policy = make(DEFAULT_CHOICE)
        assert policy.name == name
        assert policy.for_pair().decide(changed(matched=0, mismatched=0, tpot_ms=0.0)) == DEFAULT_CHOICE


def test_the_pairs_of_a_policy_do_not_share_state() -> None:
    for make in POLICIES.values():
        policy = make(DEFAULT_CHOICE)
        wrong = changed(matched=0, mismatched=16, pass_ms=40.0, batch=2.0, pass_tokens=9.0)
        for _ in range(100):
            policy.for_pair().decide(wrong)
        good, bad = policy.for_pair(), policy.for_pair()
        for _ in range(100):
            bad.decide(wrong)
        assert good.decide(changed(matched=0, mismatched=0, tpot_ms=0.0)) == DEFAULT_CHOICE


@pytest.mark.parametrize("field", ["drafted", "matched", "mismatched", "late", "discarded"])
def test_a_report_with_more_guesses_than_a_drafter_can_make_is_not_plausible(field: str) -> None:
    assert is_plausible(REPORT)
    assert not is_plausible(changed(**{field: MAX_JUDGED + 1}))


@pytest.mark.parametrize("field", ["draft_ms", "rtt_ms", "tpot_ms", "pass_ms", "num_sessions", "batch", "context"])
def test_a_report_with_figures_that_no_drafter_can_see_is_not_plausible(field: str) -> None:
    assert not is_plausible(changed(**{field: 1_000_000_000}))
