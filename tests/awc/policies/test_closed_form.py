"""The closed form: the window it finds, when it changes it, and how it comes back to drafting."""

from __future__ import annotations

import pytest

from awc.policies.closed_form import ClosedFormPair, ClosedFormPolicy, speeds
from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.protocol.messages import PairReport

STOP_AND_WAIT = WindowChoice(4, 4, free_run=False)


def report(
    matched: int, mismatched: int, *, rtt_ms: float = 30.0, pass_ms: float = 30.0, window: int = 4
) -> PairReport:
    return PairReport(
        verifier_id="cloud.0123456789ab",
        num_sessions=1,
        window=window,
        drafted=matched + mismatched,
        matched=matched,
        mismatched=mismatched,
        late=0,
        discarded=0,
        draft_ms=10.0,
        rtt_ms=rtt_ms,
        queue=0.1,
        tpot_ms=30.0,
        context=100,
        pass_ms=pass_ms,
    )


def settled(start: WindowChoice, matched: int, mismatched: int, **other: float) -> tuple[ClosedFormPair, WindowChoice]:
    pair = ClosedFormPolicy(start).for_pair()
    for _ in range(100):
        choice = pair.decide(report(matched, mismatched, **other))
    return pair, choice


@pytest.mark.parametrize(
    ("matched", "rtt_ms", "expected"),
    [(18, 30.0, 7), (16, 30.0, 4), (10, 0.0, 1), (16, 200.0, 0)],
)
def test_the_window_is_the_one_with_the_most_tokens_per_millisecond(matched: int, rtt_ms: float, expected: int) -> None:
    """Expected by trying every window: sum of a^i for i up to g, over 30 or 0 + rtt + 10 g."""
    a = matched / 20
    rates = [sum(a**i for i in range(g + 1)) / (30 + (rtt_ms + 10 * g if g else 0)) for g in range(17)]
    assert max(range(17), key=rates.__getitem__) == expected
    _, choice = settled(STOP_AND_WAIT, matched, 20 - matched, rtt_ms=rtt_ms)
    assert rates[choice.window] >= 0.98 * rates[expected]


def test_the_scheme_of_the_start_stays() -> None:
    _, waiting = settled(STOP_AND_WAIT, 18, 2)
    assert waiting.is_stop_and_wait
    assert waiting.window > 4
    _, sliding = settled(DEFAULT_CHOICE, 18, 2)
    assert (sliding.chunk, sliding.free_run) == (DEFAULT_CHOICE.chunk, True)


def test_without_a_judged_guess_or_a_pass_the_start_holds() -> None:
    pair = ClosedFormPolicy(STOP_AND_WAIT).for_pair()
    assert pair.decide(report(0, 0)) == STOP_AND_WAIT
    assert pair.decide(report(3, 1, pass_ms=0.0)) == STOP_AND_WAIT


def test_a_gain_below_the_margin_changes_nothing() -> None:
    a, best = 0.8, 4
    rates = speeds(a, 30.0, 30.0, 10.0)
    neighbour = best + 1
    assert 1 < rates[best] / rates[neighbour] < 1.02
    pair = ClosedFormPolicy(WindowChoice(neighbour, neighbour, free_run=False)).for_pair()
    assert all(pair.decide(report(16, 4)).window == neighbour for _ in range(50))


def test_target_only_is_left_again_when_the_link_gets_better() -> None:
    pair, choice = settled(STOP_AND_WAIT, 16, 4, rtt_ms=200.0)
    assert choice.window == 0
    assert choice.free_run
    assert pair.decide(report(0, 0, rtt_ms=5.0, window=0)).window > 0


def test_drafting_is_tried_again_after_a_while_without_it() -> None:
    """The draft was bad; whether it still is can only be seen by drafting."""
    pair, choice = settled(STOP_AND_WAIT, 2, 18)
    assert choice.window == 0
    windows = [pair.decide(report(0, 0, window=0)).window for _ in range(400)]
    assert windows[:20] == [0] * 20
    assert max(windows) > 0


@pytest.mark.parametrize("settings", [{"half_life": 0.0}, {"margin": -0.1}, {"assumed_matches": -1.0}])
def test_settings_that_can_not_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ClosedFormPolicy(STOP_AND_WAIT, **settings)
