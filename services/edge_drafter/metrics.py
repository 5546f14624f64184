"""Prometheus metrics of a drafter (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.protocol.guesses import FATES, Fates

MAX_VERIFIERS = 256  # names that label metrics


class DrafterMetrics:
    """All metrics of one drafter. When its sessions have ended, the fates add up to the drafted tokens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.step_seconds = Histogram(
            "dsd_drafter_step_seconds",
            "Time of one draft model step",
            buckets=(0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512),
            registry=registry,
        )
        self.step_sessions = Histogram(
            "dsd_drafter_step_sessions",
            "Sessions in a draft model step",
            buckets=(1, 2, 4, 8, 16),
            registry=registry,
        )
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.drafted = counter("dsd_drafter_drafted_tokens", "Tokens guessed")
        self.guesses = counter("dsd_drafter_guesses", "Guesses by fate", ["fate"])
        self._guesses = {fate: self.guesses.labels(fate) for fate in FATES}
        self.dropped = counter("dsd_drafter_dropped_messages", "Dropped messages by reason", ["reason"])
        self.prefix_tokens = counter("dsd_drafter_prefix_cache_hits", "Tokens taken from a KV cache of another session")
        self.unsure = counter("dsd_drafter_unsure_guesses", "Guesses that ended a window early")
        self.failed_steps = counter("dsd_drafter_failed_steps", "Draft steps that raised an error")
        self.graph_nodes = gauge("dsd_drafter_graph_nodes", "Nodes of the draft by execution provider", ["provider"])
        self.sessions = gauge("dsd_drafter_sessions", "Sessions drafted for")
        self.kv_bytes = gauge("dsd_drafter_kv_bytes", "Memory of the KV cache")
        self.window = gauge("dsd_drafter_window_tokens", "Window towards a verifier", ["verifier"])
        self.min_confidence = gauge(
            "dsd_drafter_min_confidence_ratio", "Confidence below which a guess ends a window", ["verifier"]
        )
        self.rtt_seconds = gauge("dsd_drafter_rtt_seconds", "Round trip to a verifier", ["verifier"])
        self._shown: dict[str, None] = {}  # names of verifiers, the newest last

    def show_nodes(self, num_nodes: Mapping[str, int]) -> None:
        """Who computes the draft: its nodes by execution provider."""
        for provider, number in num_nodes.items():
            self.graph_nodes.labels(provider).set(number)

    def count_fates(self, before: Fates, after: Fates) -> None:
        """Adds the changes of a session's fates."""
        for fate, counter in self._guesses.items():
            if number := getattr(after, fate) - getattr(before, fate):
                counter.inc(number)

    def show_pair(self, verifier: str, window: int, min_confidence: float, rtt_ms: float) -> None:
        """What holds towards a verifier. Where there are too many names, the one shown longest ago goes."""
        self._shown.pop(verifier, None)
        self._shown[verifier] = None
        self.window.labels(verifier).set(window)
        self.min_confidence.labels(verifier).set(min_confidence)
        self.rtt_seconds.labels(verifier).set(rtt_ms / 1e3)
        if len(self._shown) > MAX_VERIFIERS:
            oldest = next(iter(self._shown))
            del self._shown[oldest]
            for gauge in (self.window, self.min_confidence, self.rtt_seconds):
                gauge.remove(oldest)
