"""Prometheus metrics of a drafter (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.protocol.guesses import Fates

FATES = tuple(field.name for field in fields(Fates))


class DrafterMetrics:
    """All metrics of one drafter. When its sessions have ended, the fates add up to the drafted tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.step_seconds = Histogram(
            "dsd_drafter_step_seconds",
            "Time of one draft model step",
            buckets=(0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512),
            registry=registry,
        )
        self.drafted = Counter("dsd_drafter_drafted", "Tokens guessed", registry=registry)
        self.guesses = Counter("dsd_drafter_guesses", "Guesses by fate", ["fate"], registry=registry)
        self.dropped = Counter("dsd_drafter_dropped", "Dropped messages by reason", ["reason"], registry=registry)
        self.unsure = Counter("dsd_drafter_unsure", "Guesses that ended a window early", registry=registry)
        self.failed_steps = Counter("dsd_drafter_failed_steps", "Draft steps that raised an error", registry=registry)
        self.sessions = Gauge("dsd_drafter_sessions", "Sessions drafted for", registry=registry)
        self.window = Gauge("dsd_drafter_window", "Window towards a verifier", ["verifier"], registry=registry)
        self.min_confidence = Gauge(
            "dsd_drafter_min_confidence",
            "Confidence below which a guess ends a window",
            ["verifier"],
            registry=registry,
        )
        self.rtt_seconds = Gauge("dsd_drafter_rtt_seconds", "Round trip to a verifier", ["verifier"], registry=registry)

    def count_fates(self, before: Fates, after: Fates) -> None:
        """Adds the changes of a session's fates."""
        for fate in FATES:
            self.guesses.labels(fate).inc(getattr(after, fate) - getattr(before, fate))
