"""Shared verifiers are served in every way, with a measure of fairness."""

from __future__ import annotations

import numpy as np
import pytest

from awc_training import scenarios, shared_verifiers
from awc_training.shared_verifiers import WAYS, jain, serve_shared_verifiers


def test_the_fairness_index_is_1_for_equal_values_and_1_over_n_where_one_has_all() -> None:
    assert jain(np.full(7, 3.0)) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain(np.array([4.0, 2.0])) == pytest.approx(36 / 40)


def test_a_shared_verifier_is_served_in_every_way_and_compared_with_target_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_verifiers, "shared_verifiers", lambda: scenarios.shared_verifiers()[:1])
    known = ("target-only", "static 8", "ladder")  # whose policies have no weights
    monkeypatch.setattr(shared_verifiers, "WAYS", {way: WAYS[way] for way in known})
    found = {each.way: each for each in serve_shared_verifiers()}
    assert tuple(found) == known
    assert {each.scenario for each in found.values()} == {"cpu-4"}
    alone = found["target-only"]
    assert 0.9 < alone.slowest <= 1
    assert all(0 < each.jain <= 1 and each.tpot_ms > 0 for each in found.values())
