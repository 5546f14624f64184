"""Rivals are tuned on development scenarios only, each as much as the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from awc.registry import POLICIES
from awc_training import rivals
from awc_training.development import development
from awc_training.rivals import OURS, PAPER, RIVALS, WINDOWS, contestants, other_prices, tune
from awc_training.scenarios import FOLDER
from dsd_sim.studies.cells import Cell
from dsd_sim.studies.report import SimReport
from tests.awc_training.results import report

TUNABLE = {name: variants for name, variants in RIVALS.items() if not name.startswith("pipeline")}


def test_each_rival_with_parameters_has_four_variants_that_differ() -> None:
    scenario = development(1)[0]
    for name, variants in TUNABLE.items():
        policies = {repr(each.cell(scenario).policy) for each in variants}
        assert len(policies) == len({each.label for each in variants}) == len(variants) == 4, name
        assert variants[0].label == name


def test_every_registered_policy_is_a_contestant() -> None:
    names = {each.name for each in contestants()}
    assert names >= set(POLICIES)
    assert contestants()[0].name == OURS
    assert {each.start for each in contestants() if each.label.startswith("static")} == {*WINDOWS, PAPER[0].start}
    assert len({each.label for each in (*contestants(), *other_prices())}) == len(contestants()) + len(other_prices())


def test_a_rival_gets_the_variant_with_the_most_priced_goodput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cells: Iterable[Cell], folder: Path, workers: int | None) -> dict[str, SimReport]:
        return {cell.key: report(1.0, priced=3.0 if "margin=0.05" in repr(cell.policy) else 1.0) for cell in cells}

    monkeypatch.setattr(rivals, "run", run)
    best = tune(tmp_path, None, 2)
    assert dict(RIVALS["goodput"][best["goodput"]].options) == {"margin": 0.05}
    assert best["nightjar"] == 0


def test_a_contestant_s_run_depends_on_its_parameters_and_transport() -> None:
    scenario = development(1)[0]
    keys = [each.cell(scenario, FOLDER).key for each in (*contestants(), *other_prices())]
    assert len(set(keys)) == len(keys)
