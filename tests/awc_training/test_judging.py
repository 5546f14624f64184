"""Labels, targets and judgements: what is learned and told is what the runs showed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from awc.estimators.features import CHOICE_INPUTS, WINDOW_INPUTS
from awc.policies.adaptive import CHOICES
from awc_training.cards import Card
from awc_training.changes import Once, changed_s, of_all, settled_s
from awc_training.crowds import Crowded
from awc_training.dataset import CLOUD_ONLY, CLOUD_ONLY_LABEL, LEAST_WORTH, WINDOWS, choice_rows, window_rows
from awc_training.evaluate import Evaluation, Scores
from awc_training.summaries import by_class, judged
from awc_training.paper import FACTORS, Figures, PaperCell, capacities
from awc_training.report import Found, write_report
from awc_training.scenarios import CHANGE_S, TRAINING, drawn
from dsd_sim.engine.pair_reports import Seen
from dsd_sim.studies.report import Fates, Report, Times
from tests.dsd_sim.builders import a_world
from tests.dsd_sim.reports import a_report

SCENARIO = drawn(TRAINING, 1)[0].scenario
SEEN = Seen(
    num_reports=9,
    acceptance=0.8,
    window=4.0,
    num_sessions=2.0,
    context=90.0,
    rtt_ms=20.0,
    queue=0.2,
    tpot_ms=25.0,
    pass_ms=40.0,
    batch=3.0,
    pass_tokens=12.0,
    draft_ms=6.0,
)


def report(score: float, seen: Seen | None = SEEN, drafted: int = 10, latency_ms: float = 2000.0) -> Report:
    times = Times(latency_ms, latency_ms, latency_ms, latency_ms)
    return a_report(soft_goodput=score, seen=seen, fates=Fates(drafted, 0, 0, 0, 0), latency_ms=times)


# --- datasets ---------------------------------------------------------------------------------------------------------


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


# --- judgements -------------------------------------------------------------------------------------------------------

EVALUATION = Evaluation(
    family="held-out",
    num_scenarios=2,
    classes=[("near", "light"), ("far", "light")],
    transports={
        "stop-and-wait": Scores((0, 4), [[5.0, 10.0], [20.0, 10.0]], {"wc-dnn": [9.9, 18.0]}, {}),
        "sliding": Scores(
            (0, 4),
            [[5.0, 10.0], [20.0, 10.0]],
            {"adaptive": [12.0, 20.0], "ladder": [6.0, 10.0]},
            {"ladder": "interval 3"},
        ),
    },
)


def test_a_policy_is_judged_by_its_share_of_what_the_oracle_gains_where_that_can_gain() -> None:
    found = {each.name: each for each in judged(EVALUATION.transports["stop-and-wait"])}
    assert found["oracle"].mean == pytest.approx(1.5)
    assert found["wc-dnn"].share == pytest.approx(0.8), "8 of 10 in the second scenario, the first can't gain"
    assert found["wc-dnn"].worst == pytest.approx(0.99)
    assert found["static 4"].share == 0
    assert found["static 4"].oracle_median == pytest.approx(0.75)


def test_a_class_has_the_scenarios_that_belong_to_it() -> None:
    table = by_class(EVALUATION, "sliding", "adaptive")
    assert table["near"]["ladder"] == pytest.approx(2.0)
    assert table["light"]["ladder"] == pytest.approx(2.0)
    assert table["far"]["static 4"] == pytest.approx(2.0)
    assert set(table) == {"near", "far", "light"}


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([(0.0, 8), (21.5, 16)], 1.5),
        ([(0.0, 8), (5.0, 16)], 0.0),
        ([(0.0, 8), (21.0, 16), (22.0, 15), (30.0, 16)], 1.0),
        ([(0.0, 8), (21.0, 16), (22.0, 4), (30.0, 16)], 10.0),
        ([(25.0, 2)], 0.0),
    ],
)
def test_a_window_has_settled_once_it_stays_near_its_last_value(
    moves: list[tuple[float, int]], expected: float
) -> None:
    assert settled_s(moves, change_s=20.0) == expected


def test_other_guesses_reach_a_device_with_its_next_answer() -> None:
    world = a_world(3, num_devices=2)
    world.requests["arrival_ms"] = 1000 * np.array([CHANGE_S - 1, CHANGE_S + 1, CHANGE_S + 4])
    world.requests["device"] = 0, 1, 0
    assert changed_s(world) == {0: CHANGE_S + 4, 1: CHANGE_S + 1}


def test_capacity_is_the_largest_load_that_ours_holds_and_fewer_are_not_run() -> None:
    holds = {"all": 4.0, "some": 2.0, "just": 1.0, "none": 0.0}
    asked: list[tuple[float, str]] = []

    def holding(factor: float, names: Sequence[str]) -> list[str]:
        asked.extend((factor, name) for name in names)
        return [name for name in names if factor <= holds[name]]

    assert capacities(list(holds), holding) == holds
    assert [factor for factor, name in asked if name == "all"] == [4.0]
    assert [factor for factor, name in asked if name == "some"] == [4.0, 3.0, 2.5, 2.0]
    assert [factor for factor, name in asked if name == "none"] == list(FACTORS)


def test_a_report_tells_every_policy_change_cell_and_card(tmp_path: Path) -> None:
    figures = Figures(100.0, 40.0, 300.0, 0.9)
    better = Figures(150.0, 30.0, 300.0, 0.9)
    cell = PaperCell("gsm8k-600-10", {"static 4": figures, "wc-dnn": figures, "adaptive": better}, 1.5)
    crowd = Crowded("cpu-4", "static 8", 100.0, 40.0, 0.9, 0.8)
    seeds = [Once(1.5, 2.0, 0, 0.9), Once(0.5, 3.0, 1, 1.0), Once(2.5, 1.0, 2, 1.1)]
    found = Found(
        EVALUATION,
        [of_all("rtt-2", "adaptive", seeds)],
        [crowd],
        [cell],
    )
    card = Card("", ("a",), 3, 30, "", 1, 32, 100, 4321, 0.5, 2.0, {})
    write_report(tmp_path / "awc" / "report.md", found, {"wc-dnn": card})
    text = (tmp_path / "awc" / "report.md").read_text()
    for line in (
        "| wc-dnn |  | 1.395 | 80% | 0.990 | 0 | 0.945 | 0.909 |",
        "| ladder | interval 3 | 0.800 | 0% | 0.600 | 1 |",
        "| cpu-4 | static 8 | 100 | 40.0 | 0.900 | 0.800 |",
        "| ladder | 2.000 | 2.000 | 2.000 |",
        "| rtt-2 | adaptive | 1.5 | 2.5 | 2.0 | 1.0 | 1.000 |",
        "| gsm8k-600-10 | 100, 40.0, 300 | 100, 40.0, 300 | 150, 30.0, 300 | 1.500, 0.750, 1.000 | 1.5 |",
        "| wc-dnn | 4321 | 3 | 30 | 0.500 | 2.000 | 1 |",
    ):
        assert line in text, text
