"""Summaries of an evaluation relate each policy to static 4 and to the oracle."""

from __future__ import annotations

import pytest

from awc_training.summaries import by_class, summaries
from tests.awc_training.results import EVALUATION


def test_a_policy_is_judged_by_its_share_of_what_the_oracle_gains_where_that_can_gain() -> None:
    found = {each.name: each for each in summaries(EVALUATION.transports["stop-and-wait"])}
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
