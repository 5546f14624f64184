"""Metrics of the window controller. docs/awc.md lists the drop reasons."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ControllerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.reports = Counter("dsd_controller_reports", "Reports decided on", registry=registry)
        self.dropped = Counter(
            "dsd_controller_dropped", "Reports, parts of reports and heartbeats dropped", ["reason"], registry=registry
        )
        self.failed = Counter("dsd_controller_failed", "Pairs on which the policy failed", registry=registry)
        self.window = Histogram(
            "dsd_controller_window_tokens",
            "Windows of the decisions announced",
            buckets=(0, 1, 2, 4, 8, 12, 16, 24, 32, 64),
            registry=registry,
        )
        self.pairs = Gauge("dsd_controller_pairs", "Drafter-verifier pairs known", registry=registry)
        self.verifiers = Gauge("dsd_controller_verifiers", "Verifiers alive", registry=registry)
