"""The replica formula against the examples that Kubernetes' algorithm prescribes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from deploy.grafana.fleet import UTILIZATION
from tests.autoscaling.autoscaler import COMPONENTS, SYNC_S, Autoscaler, ScalingRule, read_rule
from tests.metrics.reading import rules

RULE = ScalingRule("", 80.0, True, False, 1, 10, window_s=60.0, down_pods=1, down_period_s=45.0)


def decided(rule: ScalingRule, replicas: int, values: list[float | None]) -> list[int]:
    scaler = Autoscaler(rule, replicas)
    return [scaler.decide(number * SYNC_S, value) for number, value in enumerate(values)]


def test_the_value_is_shared_out_and_rounded_up() -> None:
    assert decided(RULE, 2, [300.0]) == [4]


@pytest.mark.parametrize(("value", "replicas"), [(170.0, 2), (175.0, 2), (177.0, 3)])
def test_a_deviation_of_up_to_a_tenth_changes_nothing(value: float, replicas: int) -> None:
    assert decided(RULE, 2, [value]) == [replicas]


def test_a_plain_value_multiplies_the_replicas() -> None:
    assert decided(replace(RULE, is_average=False, threshold=30.0), 2, [60.0, 30.0]) == [4, 4]


def test_it_grows_by_four_or_twofold_in_15_seconds() -> None:
    assert decided(replace(RULE, max_replicas=99), 1, [9999.0] * 3) == [5, 10, 20]


def test_the_limits_hold() -> None:
    assert decided(RULE, 8, [9999.0]) == [10]
    assert decided(replace(RULE, window_s=0.0), 2, [0.0]) == [1]


def test_it_shrinks_after_the_window_by_one_in_each_period() -> None:
    values: list[float | None] = [240.0, *[0.0] * 8]
    assert decided(RULE, 3, values) == [3, 3, 3, 3, 2, 2, 2, 1, 1]


def test_a_query_that_finds_nothing_is_an_error_or_0_as_the_rule_says() -> None:
    values: list[float | None] = [None] * 40
    assert decided(RULE, 3, values) == [3] * 40
    assert decided(replace(RULE, is_zero_without=True), 3, values)[-1] == 1


@pytest.mark.parametrize("name", ["keda/verifier", "keda/gateway", "keda-drafters/drafter"])
def test_the_manifests_have_rules_that_keep_what_runs_without_metrics(name: str) -> None:
    rule = read_rule(COMPONENTS / f"{name}.yaml")
    assert rule.query
    assert 1 <= rule.min_replicas < rule.max_replicas
    assert decided(rule, rule.max_replicas, [None] * 100) == [rule.max_replicas] * 100


def test_autoscaler_dashboard_and_alert_have_one_figure_of_utilisation() -> None:
    """KEDA divides by the number of verifiers: it gets the mean capacity in place of the sum, and percent."""
    (recorded,) = [rule["expr"] for rule in rules() if rule.get("record") == "dsd:utilization:ratio"]
    capacity = "dsd_verifier_capacity_sessions"
    assert recorded == UTILIZATION
    query = read_rule(COMPONENTS / "keda" / "verifier.yaml").query.replace('{namespace="dsd"}', "")
    of_fleet = re.sub(r"\s+", " ", query).strip().removeprefix("100 * ")
    assert of_fleet.replace(f"avg({capacity} > 0)", f"(sum({capacity}) > 0)") == recorded
