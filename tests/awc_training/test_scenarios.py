"""The scenarios of training and evaluation: reproducible, and disjoint in every parameter."""

from __future__ import annotations

from dataclasses import fields

import pytest

from awc_training.scenarios import FOLDER, HELD_OUT, TRAINING, Family, changing, drawn
from dsd_sim.scenario.build import make_fleet
from dsd_sim.studies.cells import key_of


def test_no_value_of_the_training_family_is_held_out() -> None:
    for field in fields(TRAINING):
        ours, theirs = getattr(TRAINING, field.name), getattr(HELD_OUT, field.name)
        if isinstance(ours, tuple):
            assert not set(ours) & set(theirs), field.name
        else:
            assert ours != theirs


def test_the_same_scenarios_are_drawn_again() -> None:
    assert drawn(TRAINING, 5) == drawn(TRAINING, 8)[:5]


def test_no_two_scenarios_are_alike() -> None:
    scenarios = [each.scenario for family in (TRAINING, HELD_OUT) for each in drawn(family, 50)]
    assert len({key_of(scenario, FOLDER) for scenario in scenarios}) == 100


@pytest.mark.parametrize("family", [TRAINING, HELD_OUT], ids=lambda family: family.name)
def test_scenarios_can_be_run(family: Family) -> None:
    for each in drawn(family, 20):
        make_fleet(each.scenario, FOLDER)


def test_every_class_of_held_out_scenarios_has_some() -> None:
    classes = [name for each in drawn(HELD_OUT, 210) for name in each.classes]
    assert {name: classes.count(name) >= 20 for name in set(classes)} == dict.fromkeys(
        ("near", "mid", "far", "closed", "heavy", "light", "often right", "often wrong"), True
    )


def test_what_changes_is_all_that_differs_between_the_phases() -> None:
    for each in changing(seed=9):
        before, after = each.phases
        assert each.scenario.seed == before.seed == after.seed == 9
        differing = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
        assert differing <= {"name", "edge", "workload"}
        assert len(differing) == 2
