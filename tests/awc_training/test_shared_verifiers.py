"""Crowds are served in every way, and how fairly is told."""

from __future__ import annotations

import numpy as np
import pytest

from awc_training import crowds
from awc_training.crowds import WAYS, jain
from awc_training.scenarios import crowded


def test_jain_s_index_is_1_where_all_are_alike_and_a_share_where_few_have_all() -> None:
    assert jain(np.full(7, 3.0)) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain(np.array([4.0, 2.0])) == pytest.approx(36 / 40)


def test_a_crowd_is_served_in_every_way_and_compared_with_target_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "crowded", lambda: crowded()[:1])
    known = ("target-only", "static 8", "ladder")  # whose policies have no weights
    monkeypatch.setattr(crowds, "WAYS", {way: WAYS[way] for way in known})
    found = {each.way: each for each in crowds.crowds()}
    assert tuple(found) == known
    assert {each.scenario for each in found.values()} == {"cpu-4"}
    alone = found["target-only"]
    assert 0.9 < alone.slowest <= 1
    assert all(0 < each.jain <= 1 and each.tpot_ms > 0 for each in found.values())
