"""Rivals are tuned on training scenarios, and each transport gets the best variant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from awc.registry import POLICIES
from awc_training import rivals
from awc_training.evaluate import POLICY_NAMES, cells_of
from awc_training.rivals import START, RivalVariant, tuned, variants
from awc_training.runs import SLIDING, STOP_AND_WAIT
from awc_training.scenarios import TRAINING, drawn
from dsd_sim.studies.cells import Cell
from dsd_sim.studies.report import SimReport
from tests.awc_training.results import report

OURS = ("wc-dnn", "adaptive")


@pytest.mark.parametrize("name", sorted(set(POLICY_NAMES) - set(OURS)))
def test_a_rival_s_first_variant_is_the_one_that_is_registered_and_all_differ(name: str) -> None:
    found = variants(name)
    scenario = drawn(TRAINING, 1)[0].scenario
    policies = [repr(each.cell(scenario, SLIDING).policy) for each in found]
    assert policies[0] == repr(POLICIES[name](SLIDING.choice(START)))
    assert len(found) > 2
    assert len(set(policies)) == len({each.label for each in found}) == len(found)


@pytest.mark.parametrize("name", OURS)
def test_ours_have_no_variants(name: str) -> None:
    assert variants(name) == [RivalVariant(name)]


def test_each_transport_gets_the_variant_that_scores_most_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(cells: Iterable[Cell], folder: Path, workers: int | None) -> dict[str, SimReport]:
        """Small margins are worth most in stop-and-wait, and large ones while sliding."""
        found = {}
        for cell in cells:
            is_large, waits = "margin=0.05" in repr(cell.policy), STOP_AND_WAIT.name in cell.label
            found[cell.key] = report(3.0 if is_large != waits else 1.0)
        return found

    monkeypatch.setattr(rivals, "run", run)
    best = tuned(tmp_path, ("goodput", "adaptive"), 3, None)
    assert best["sliding"] == {
        "goodput": RivalVariant("goodput", options={"margin": 0.05}),
        "adaptive": RivalVariant("adaptive"),
    }
    assert best["stop-and-wait"]["goodput"].options != {"margin": 0.05}
    assert best["sliding"]["goodput"].label == "margin 0.05"
    assert best["sliding"]["adaptive"].label == "as registered"


def test_a_policy_that_chooses_free_run_itself_is_not_evaluated_in_stop_and_wait() -> None:
    scenarios, best = drawn(TRAINING, 1), {name: RivalVariant(name) for name in POLICY_NAMES}
    assert set(cells_of(scenarios, SLIDING, best)) - set(cells_of(scenarios, STOP_AND_WAIT, best)) == {
        "adaptive",
        *("16", "24", "32"),  # static windows
    }
