"""The capacity of the paper's cells."""

from __future__ import annotations

from collections.abc import Sequence

from awc_training.paper import FACTORS, capacities


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
