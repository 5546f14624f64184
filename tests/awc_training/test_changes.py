"""Changes of a scenario: when a window has settled, and when a change reaches a device."""

from __future__ import annotations

import numpy as np
import pytest

from awc_training.changes import ChangeRun, changed_s, of_all, settled_s
from awc_training.scenarios import CHANGE_S
from tests.dsd_sim.builders import a_world


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


def test_every_figure_over_seeds_has_an_interval() -> None:
    runs = [ChangeRun(settled, 3.0, 1.0, 0.9) for settled in (1.0, 2.0, 9.0)]
    row = of_all("rtt-2", "adaptive", runs).row
    assert row == "rtt-2 | adaptive | 2.0 (1.0–9.0) | 9.0 | 3.0 (3.0–3.0) | 1.0 (1.0–1.0) | 0.900 (0.900–0.900)"
