"""The adaptive policy: as far ahead as the pipeline can use, and no further than guesses pay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from awc.policies.adaptive import LEAST, NEAR, VALUE, AdaptivePolicy
from awc.policies.pipeline import PipelinePolicy
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice
from awc.registry import POLICIES
from shared.protocol.messages import MAX_WINDOW, PairReport
from tests.awc.reports import SEEN
from tests.awc.worlds import ANY_REPORT

RIGHT = changed(SEEN, matched=40, mismatched=0)
HALF = changed(SEEN, matched=20, mismatched=20)


def settled(pair: PairControl, seen: PairReport, num: int = 60) -> WindowChoice:
    for _ in range(num):
        choice = pair.decide(seen)
        seen = changed(seen, window=choice.window)
    return choice


def test_right_guesses_get_the_window_of_the_pipeline() -> None:
    found = settled(AdaptivePolicy(DEFAULT_CHOICE).for_pair(), RIGHT)
    assert found == PipelinePolicy(DEFAULT_CHOICE).decide(RIGHT)
    assert found == WindowChoice(15, 2, free_run=True)  # (30 + 2 * 40) ms / 10 ms, and two chunks


def test_a_longer_link_and_a_faster_draft_make_the_window_longer() -> None:
    windows = [
        settled(AdaptivePolicy(DEFAULT_CHOICE).for_pair(), changed(RIGHT, **world)).window
        for world in ({"rtt_ms": 5.0}, {}, {"rtt_ms": 100.0}, {"rtt_ms": 100.0, "draft_ms": 6.0}, {"rtt_ms": 1e6})
    ]
    assert windows == sorted(set(windows))
    assert windows[-1] == MAX_WINDOW


def test_guesses_that_are_often_wrong_are_made_only_as_far_as_they_pay() -> None:
    found = settled(AdaptivePolicy(DEFAULT_CHOICE, price=0.02).for_pair(), changed(HALF, draft_ms=1.0))
    pays = [0.5**k * VALUE >= 0.02 * (1 - 0.5**k) for k in range(1, 20)]
    assert 0.8 * pays.index(False) <= found.window <= pays.index(False) + 1


def test_without_a_price_only_the_pipeline_bounds_the_window() -> None:
    seen = changed(HALF, draft_ms=2.0, pass_tokens=4.0, batch=4.0)
    free, priced = (AdaptivePolicy(DEFAULT_CHOICE, price=price).for_pair() for price in (0.0, 0.01))
    assert settled(free, seen).window > 2 * settled(priced, seen).window


def test_windows_are_shorter_where_every_token_makes_a_pass_longer() -> None:
    def window(token_ms: float) -> int:
        pair = AdaptivePolicy(DEFAULT_CHOICE).for_pair()
        for number in range(200):
            tokens = 8.0 + number % 9
            pair.decide(changed(RIGHT, batch=8.0, draft_ms=4.0, pass_tokens=tokens, pass_ms=30 + token_ms * tokens))
        return settled(pair, changed(RIGHT, batch=8.0, draft_ms=4.0, pass_tokens=12.0, pass_ms=60.0), 1).window

    assert window(3.0) < window(0.0)


def test_a_turn_of_the_acceptance_is_followed_within_a_few_reports() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE).for_pair()
    far = {"rtt_ms": 200.0, "draft_ms": 5.0}
    before = settled(pair, changed(SEEN, matched=19, mismatched=1, **far), 200).window
    after = settled(pair, changed(SEEN, matched=6, mismatched=14, **far), 4).window
    assert after < before / 3


def test_a_window_near_the_present_one_changes_nothing() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE).for_pair()
    first = settled(pair, RIGHT)
    assert settled(pair, changed(RIGHT, rtt_ms=RIGHT.rtt_ms + 0.8 * NEAR * first.window * RIGHT.draft_ms)) == first
    assert settled(pair, changed(RIGHT, rtt_ms=90.0)).window > first.window


def test_before_the_first_tokens_and_without_sessions_the_start_holds() -> None:
    pair = AdaptivePolicy(DEFAULT_CHOICE).for_pair()
    silent = [changed(SEEN, tpot_ms=0.0), changed(SEEN, pass_ms=0.0), changed(SEEN, num_sessions=0)]
    assert {pair.decide(seen) for seen in silent} == {DEFAULT_CHOICE}


def test_the_chunk_is_that_of_the_start_and_fits_the_window() -> None:
    pair = AdaptivePolicy(WindowChoice(8, 4, free_run=False)).for_pair()
    assert settled(pair, RIGHT).chunk == 4
    assert settled(pair, changed(SEEN, matched=1, mismatched=30)) == WindowChoice(LEAST, LEAST, free_run=True)


def test_the_default_does_not_draft_with_wrong_guesses_on_a_slow_drafter() -> None:
    unhelpful = changed(SEEN, matched=1, mismatched=7, draft_ms=60.0, pass_ms=20.0, tpot_ms=25.0, num_sessions=8)
    pair, windows = POLICIES["adaptive"](DEFAULT_CHOICE).for_pair(), []
    for number in range(200):
        seen = changed(unhelpful, window=0, matched=0, mismatched=0) if windows and not windows[-1] else unhelpful
        windows.append(pair.decide(changed(seen, tpot_ms=25.0 + number % 2)).window)
    assert windows.count(0) > 185, windows


@given(st.lists(ANY_REPORT, min_size=1, max_size=8))
def test_whatever_is_reported_the_window_is_within_bounds(reports: list[PairReport]) -> None:
    pair = POLICIES["adaptive"](DEFAULT_CHOICE).for_pair()
    for seen in reports:
        assert 0 <= pair.decide(seen).window <= MAX_WINDOW


@pytest.mark.parametrize("given", [{"price": -0.1}, {"price": 1.0}, {"price": math.nan}, {"half_life": 0.0}], ids=str)
def test_settings_that_cannot_work_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        AdaptivePolicy(DEFAULT_CHOICE, **given)  # type: ignore[arg-type]
