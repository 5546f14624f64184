"""The two engines whose speed is compared simulate the same fleet."""

from __future__ import annotations

import pytest

from benchmarks.experiments.sim_speed import of_dsd_sim, of_simpy


def test_both_engines_verify_about_as_many_windows_per_virtual_second() -> None:
    """DSD-Sim also prefills prompts and ends answers, so it verifies slightly fewer windows."""
    ours, simpy = of_dsd_sim(8000), of_simpy(20.0, seed=1)
    assert ours.num_windows > 50_000
    assert ours.virtual_rate == pytest.approx(simpy.virtual_rate, rel=0.25)
