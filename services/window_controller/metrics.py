"""Metrics of the window controller. docs/awc.md lists the drop reasons."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ControllerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.reports = counter("dsd_controller_reports", "Reports decided on")
        self.dropped = counter(
            "dsd_controller_dropped_messages", "Reports, parts of reports and heartbeats dropped", ["reason"]
        )
        self.failed = counter("dsd_controller_failed_decisions", "Pairs on which the policy failed")
        self.window = Histogram(
            "dsd_controller_window_tokens",
            "Windows of the decisions announced",
            buckets=(0, 1, 2, 4, 8, 12, 16, 24, 32, 64),
            registry=registry,
        )
        self.pairs = gauge("dsd_controller_pairs", "Drafter-verifier pairs known")
        self.led_pairs = gauge("dsd_controller_led_pairs", "Drafter-verifier pairs that follow this controller")
        self.verifiers = gauge("dsd_controller_verifiers", "Verifiers alive")
