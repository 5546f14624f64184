"""What became of each drafter's guesses lately, in virtual time."""

from __future__ import annotations

import pytest

from services.gateway.fleet import guesses
from services.gateway.fleet.guesses import DrafterGuesses, GuessQuality, further
from shared.protocol.guesses import Fates
from shared.protocol.messages import Tally


def fed(fates: Fates, seconds: int, begin: int = 0, seen: DrafterGuesses | None = None) -> DrafterGuesses:
    """These fates once a second."""
    seen = seen or DrafterGuesses()
    for second in range(begin, begin + seconds):
        seen.observe("d", fates, float(second))
    return seen


def test_a_drafter_that_was_never_heard_of_has_no_quality() -> None:
    assert DrafterGuesses().quality("d", 0.0) == GuessQuality(0.0, None, None)


@pytest.mark.parametrize("seconds", [10, 300])
def test_all_guesses_count_for_the_rate_from_the_beginning_on(seconds: int) -> None:
    quality = fed(Fates(5, 1, 2, 2), seconds).quality("d", float(seconds))
    assert quality.per_s == pytest.approx(10, rel=0.05)


def test_acceptance_is_of_the_judged_guesses_and_in_time_of_the_right_ones() -> None:
    quality = fed(Fates(6, 2, 2, 90), 10).quality("d", 10.0)
    assert (quality.acceptance, quality.in_time) == (pytest.approx(0.8), pytest.approx(0.75))


def test_older_guesses_count_less() -> None:
    better = fed(Fates(10, 0, 0, 0), 60, 60, fed(Fates(0, 10, 0, 0), 60)).quality("d", 120.0)
    worse = fed(Fates(0, 10, 0, 0), 60, 60, fed(Fates(10, 0, 0, 0), 60)).quality("d", 120.0)
    assert better.acceptance is not None
    assert worse.acceptance is not None
    assert worse.acceptance < 0.2 < 0.8 < better.acceptance


def test_what_a_silent_drafter_did_is_forgotten() -> None:
    quality = fed(Fates(10, 1, 0, 0), 10).quality("d", 600.0)
    assert quality.per_s < 0.01
    assert (quality.acceptance, quality.in_time) == (None, None)


def test_a_drafter_that_repeats_what_was_committed_has_no_guess_in_time() -> None:
    """It looks right, since a late guess equals the target's token."""
    quality = fed(Fates(0, 0, 4, 0), 10).quality("d", 10.0)
    assert (quality.acceptance, quality.in_time) == (1.0, 0.0)


def test_only_the_drafters_heard_of_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "MAX_DRAFTERS", 2)
    seen = DrafterGuesses()
    for second, drafter_id in enumerate("abac"):
        seen.observe(drafter_id, Fates(9, 0, 0, 0), float(second))
    assert [seen.quality(each, 4.0).acceptance for each in "abc"] == [1.0, None, 1.0]


def test_a_verifier_whose_counts_shrink_takes_nothing_away() -> None:
    assert further(Tally(5, 1, 9, 4, 7), Tally(3, 2, 4, 4, 6)) == Fates(2, 0, 5, 0)
