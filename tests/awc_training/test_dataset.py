"""Rows of the datasets: inputs are the reports of a run, targets the results of all runs."""

from __future__ import annotations

import msgspec
import pytest

from awc.estimators.features import WINDOW_INPUTS
from awc_training.dataset import CLOUD_ONLY, CLOUD_ONLY_LABEL, WINDOWS, window_rows
from tests.awc_training.results import SEEN, report


def test_every_row_of_a_scenario_has_the_window_with_the_best_score_as_its_label() -> None:
    inputs, targets = window_rows([report(10.0 - abs(window - 7)) for window in WINDOWS])
    assert targets == [[7.0]] * len(WINDOWS)
    place = WINDOW_INPUTS.index("window")
    assert [row[place] for row in inputs] == [CLOUD_ONLY, *WINDOWS[1:]]


def test_where_target_only_is_best_the_label_says_so() -> None:
    _, targets = window_rows([report(10.0 - window) for window in WINDOWS])
    assert targets[0] == [CLOUD_ONLY_LABEL]


def test_while_nothing_is_drafted_acceptance_is_what_other_runs_showed() -> None:
    seen = msgspec.structs.replace(SEEN, acceptance=0.0)
    found = [report(1.0, seen, drafted=0), *(report(1.0) for _ in WINDOWS[1:])]
    place = WINDOW_INPUTS.index("acceptance")
    assert window_rows(found)[0][0][place] == pytest.approx(0.8)


def test_runs_that_reported_nothing_make_no_rows() -> None:
    found = [report(1.0, None), *(report(2.0) for _ in WINDOWS[1:])]
    assert len(window_rows(found)[0]) == len(WINDOWS) - 1
