"""Rows of the datasets: inputs are the reports of a run, targets the results of all runs."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from awc.estimators.features import CHOICE_INPUTS, WINDOW_INPUTS
from awc.policies.adaptive import CHOICES
from awc_training.dataset import CLOUD_ONLY, CLOUD_ONLY_LABEL, LEAST_WORTH, WINDOWS, choice_rows, window_rows
from awc_training.scenarios import TRAINING, drawn
from tests.awc_training.results import SEEN, report

SCENARIO = drawn(TRAINING, 1)[0].scenario


def test_every_row_of_a_scenario_has_the_window_with_the_best_score_as_its_label() -> None:
    inputs, targets = window_rows(SCENARIO, [report(10.0 - abs(window - 7)) for window in WINDOWS])
    assert targets == [[7.0]] * len(WINDOWS)
    place = WINDOW_INPUTS.index("window")
    assert [row[place] for row in inputs] == [CLOUD_ONLY, *WINDOWS[1:]]


def test_where_target_only_is_best_the_label_says_so() -> None:
    _, targets = window_rows(SCENARIO, [report(10.0 - window) for window in WINDOWS])
    assert targets[0] == [CLOUD_ONLY_LABEL]


def test_while_nothing_is_drafted_acceptance_is_what_other_runs_showed() -> None:
    seen = msgspec.structs.replace(SEEN, acceptance=0.0)
    found = [report(1.0, seen, drafted=0), *(report(1.0) for _ in WINDOWS[1:])]
    place = WINDOW_INPUTS.index("acceptance")
    assert window_rows(SCENARIO, found)[0][0][place] == pytest.approx(0.8)
    choices = [report(1.0, seen, drafted=0), *(report(1.0) for _ in CHOICES[1:])]
    assert choice_rows(SCENARIO, choices)[0][0][CHOICE_INPUTS.index("acceptance")] == pytest.approx(0.8)


def test_runs_that_reported_nothing_make_no_rows() -> None:
    found = [report(1.0, None), *(report(2.0) for _ in WINDOWS[1:])]
    assert len(window_rows(SCENARIO, found)[0]) == len(WINDOWS) - 1


def test_targets_are_the_worth_of_all_choices_against_the_best_one() -> None:
    scores = [10.0, *([5.0] * (len(CHOICES) - 2)), 0.0]
    faster = report(10.0, latency_ms=1600.0)
    inputs, targets = choice_rows(SCENARIO, [*(report(score) for score in scores[:-2]), faster, report(scores[-1])])
    assert len(inputs) == len(CHOICES)
    assert len(inputs[0]) == len(CHOICE_INPUTS)
    assert targets[3][-2] == 0.0
    assert targets[3][0] == pytest.approx(np.log(16 / 20) / 2), "as much within the objective, but slower"
    assert targets[3][1] == pytest.approx(np.log(0.5) / 2 + np.log(16 / 20) / 2)
    assert targets[3][-1] == LEAST_WORTH, "how bad it is need not be learned"
