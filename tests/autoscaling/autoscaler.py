"""The number of replicas that Kubernetes' HorizontalPodAutoscaler asks for, by the rule of a ScaledObject.

Invariant: no clock. It follows the published algorithm for external metrics (autoscaling/v2): a tolerance of 10 %,
scaling up at once by 4 pods or 100 % in 15 s, scaling down to the highest recommendation of the stabilization window,
within the policies. KEDA hands the query's value on as it is; one that is missing is 0 or an error, as the rule says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.metrics.reading import ROOT

COMPONENTS = ROOT / "k8s" / "components"
SYNC_S = 15.0  # between two decisions
TOLERANCE = 0.1
UP_PODS, UP_SHARE, UP_PERIOD_S = 4, 2.0, 15.0  # at most this many more, or this many times as many, in a period
DEFAULT_WINDOW_S = 300.0


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """What a ScaledObject with a Prometheus trigger says."""

    query: str
    threshold: float
    is_average: bool  # AverageValue: the value is divided by the replicas; else Value
    is_zero_without: bool  # a query that finds nothing counts as 0; else as an error, so the number stays
    min_replicas: int
    max_replicas: int
    window_s: float  # of stabilization, downwards
    down_pods: int  # at most so many fewer in a period
    down_period_s: float


def read_rule(path: Path) -> ScalingRule:
    """The rule of a ScaledObject's first trigger."""
    spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    trigger = spec["triggers"][0]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    return ScalingRule(
        query=trigger["metadata"]["query"],
        threshold=float(trigger["metadata"]["threshold"]),
        is_average=trigger["metricType"] == "AverageValue",
        is_zero_without=trigger["metadata"].get("ignoreNullValues", "true") == "true",
        min_replicas=spec["minReplicaCount"],
        max_replicas=spec["maxReplicaCount"],
        window_s=float(down.get("stabilizationWindowSeconds", DEFAULT_WINDOW_S)),
        down_pods=policy["value"],
        down_period_s=float(policy["periodSeconds"]),
    )


@dataclass(slots=True)
class Autoscaler:
    """One workload. Times are seconds, from any zero."""

    rule: ScalingRule
    replicas: int
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)  # when replicas changed, and by how many

    def decide(self, now: float, value: float | None) -> int:
        """The number of replicas from now on. value: the query's; None: it found nothing."""
        if value is None and not self.rule.is_zero_without:
            return self.replicas
        wanted = self._stabilized(now, self._wanted(value or 0.0))
        wanted = min(max(self._limited(now, wanted), self.rule.min_replicas), self.rule.max_replicas)
        if wanted != self.replicas:
            self._changes.append((now, wanted - self.replicas))
            self.replicas = wanted
        return self.replicas

    def _wanted(self, value: float) -> int:
        """By the value alone. All replicas count as ready."""
        usage = value / self.rule.threshold
        if self.rule.is_average:
            near = abs(usage / self.replicas - 1) <= TOLERANCE
            return self.replicas if near else math.ceil(usage)
        return self.replicas if abs(usage - 1) <= TOLERANCE else math.ceil(usage * self.replicas)

    def _stabilized(self, now: float, wanted: int) -> int:
        kept = [(at, number) for at, number in self._recommended if at > now - self.rule.window_s]
        self._recommended = [*kept, (now, wanted)]
        highest = max(number for _, number in self._recommended)
        return max(wanted, min(self.replicas, highest))

    def _limited(self, now: float, wanted: int) -> int:
        """Within what the policies allow since the beginning of their periods."""
        rose = sum(num for at, num in self._changes if num > 0 and at > now - UP_PERIOD_S)
        fell = -sum(num for at, num in self._changes if num < 0 and at > now - self.rule.down_period_s)
        before_rise, before_fall = self.replicas - rose, self.replicas + fell
        most = max(before_rise + UP_PODS, math.ceil(before_rise * UP_SHARE))
        return (
            max(min(wanted, most), before_fall - self.rule.down_pods) if wanted < self.replicas else min(wanted, most)
        )
