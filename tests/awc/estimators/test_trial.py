"""A trial of a window: which reports count, and when it ends."""

from __future__ import annotations

from msgspec.structs import replace as changed

from awc.estimators.trial import PATIENCE, Trial
from tests.awc.worlds import World


def test_reports_count_from_when_the_window_is_in_force_and_has_settled() -> None:
    trial, report = Trial(4, settling=2, num_wanted=2), changed(World().report(4), matched=0, mismatched=0)
    for window, tpot_ms in ((8, 90.0), (4, 80.0), (8, 90.0), (4, 60.0), (4, 20.0)):
        trial.observe(changed(report, window=window, tpot_ms=tpot_ms))
    assert not trial.is_over
    trial.observe(changed(report, tpot_ms=10.0))
    assert trial.is_over
    assert trial.tpot_ms == 15.0


def test_reports_of_pairs_that_are_not_being_answered_do_not_count() -> None:
    trial, report = Trial(4, settling=0, num_wanted=1), World().report(4)
    trial.observe(changed(report, num_sessions=0))
    trial.observe(changed(report, tpot_ms=0.0))
    assert trial == Trial(4, settling=0, num_wanted=1)


def test_a_window_that_never_comes_into_force_is_given_up_without_a_result() -> None:
    trial, report = Trial(4, settling=0, num_wanted=2), World().report(8)
    for _ in range(PATIENCE):
        assert not trial.is_over
        trial.observe(report)
    assert trial.is_over
    assert trial.tpot_ms is None


def test_a_time_too_short_to_be_true_counts_as_a_microsecond() -> None:
    trial = Trial(4, settling=0, num_wanted=1)
    trial.observe(changed(World().report(4), tpot_ms=5e-324))
    assert trial.tpot_ms == 1e-3


def test_only_another_window_needs_to_settle() -> None:
    ended = Trial(4, settling=0, num_wanted=2, times=[15.0, 15.0])
    assert ended.followed_by(4, settling=2).settling == 0
    assert ended.followed_by(8, settling=2).settling == 2
    assert Trial(4, settling=1, num_wanted=2).followed_by(4, settling=2).settling == 2
