"""The two engines whose speed is compared simulate the same fleet."""

from __future__ import annotations

import pytest

from benchmarks.experiments.sim_speed import of_dsd_sim, of_simpy


def test_both_engines_verify_about_as_many_windows_in_a_second_of_their_virtual_time() -> None:
    """DSD-Sim's fleet also reads prompts and ends its answers, so it gets a little less done."""
    ours, simpy = of_dsd_sim(8000), of_simpy(20.0, seed=1)
    assert ours.num_windows > 50_000
    assert ours.virtual_rate == pytest.approx(simpy.virtual_rate, rel=0.25)
