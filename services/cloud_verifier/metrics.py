"""Prometheus metrics of a verifier (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.cloud_verifier.sessions import Occupancy
from shared.protocol.guesses import FATES, Fates
from shared.protocol.messages import Load, Tally
from shared.runtime.metrics import QuickHistogram


class VerifierMetrics:
    """All metrics of one verifier. What every pass counts is cheap: no look-up of labels, no lock of a histogram."""

    def __init__(self, registry: CollectorRegistry) -> None:
        histogram = partial(QuickHistogram, registry=registry)
        self.pass_seconds = histogram(
            "dsd_verifier_pass_seconds",
            "Time of one verify pass",
            (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
        )
        self.pass_sessions = histogram(
            "dsd_verifier_pass_sessions", "Sessions in one pass", (1, 2, 4, 8, 16, 32, 64, 128)
        )
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self.fed_tokens = counter("dsd_verifier_fed_tokens", "Tokens computed in passes")
        self.prefix_tokens = counter(
            "dsd_verifier_prefix_cache_hits", "Tokens copied from a KV cache of another session"
        )
        self.preemptions = counter("dsd_verifier_num_preemptions", "Sessions that lost their KV cache to another one")
        self.committed_tokens = counter("dsd_verifier_committed_tokens", "Tokens fixed by the target")
        self.guesses = counter("dsd_verifier_guesses", "Guesses received, by what became of them", ["fate"])
        self.lookup_guesses = counter(
            "dsd_verifier_lookup_guesses", "Guesses of the verifier's own from the text, by fate", ["fate"]
        )
        self._lookup_guesses = {fate: self.lookup_guesses.labels(fate) for fate in FATES if fate != "late"}
        self._guesses = {fate: self.guesses.labels(fate) for fate in FATES}
        self.dropped = counter("dsd_verifier_dropped_messages", "Messages not acted upon, by reason", ["reason"])
        self.failed_passes = counter("dsd_verifier_failed_passes", "Passes that raised an error")
        self.expired_sessions = counter("dsd_verifier_expired_sessions", "Sessions closed by their lease")
        self.sessions = gauge("dsd_verifier_sessions", "Open sessions")
        self.num_running = gauge("dsd_verifier_num_requests_running", "Sessions that have KV cache")
        self.num_waiting = gauge("dsd_verifier_num_requests_waiting", "Sessions that wait for KV cache")
        self.capacity = gauge("dsd_verifier_capacity_sessions", "Sessions that can be computed at once")
        self.utilization = gauge("dsd_verifier_utilization_ratio", "Sessions running and waiting / capacity")
        self.kv_usage = gauge("dsd_verifier_kv_cache_usage_ratio", "Reserved KV cache / all KV cache")
        self.queue_tokens = gauge("dsd_verifier_queue_tokens", "Tokens waiting to be computed")
        self.free_kv_tokens = gauge(
            "dsd_verifier_free_kv_tokens", "KV cache that a new session gets at once, in tokens"
        )

    def observe_pass(self, elapsed_ms: float, num_sessions: int, num_tokens: int, num_committed: int) -> None:
        self.pass_seconds.observe(elapsed_ms / 1e3)
        self.pass_sessions.observe(num_sessions)
        self.fed_tokens.inc(num_tokens)
        self.committed_tokens.inc(num_committed)

    def observe_load(self, load: Load, occupancy: Occupancy) -> None:
        self.sessions.set(load.num_sessions)
        self.queue_tokens.set(load.queue_tokens)
        self.free_kv_tokens.set(load.free_kv_tokens)
        self.num_running.set(occupancy.num_running)
        self.num_waiting.set(occupancy.num_waiting)
        self.capacity.set(occupancy.capacity)
        self.utilization.set(occupancy.utilization)
        self.kv_usage.set(occupancy.kv_usage)

    def count_guesses(self, before: Tally, after: Tally) -> None:
        """Adds the difference of a session's two tallies."""
        _add(self._guesses, before, after)

    def count_lookups(self, before: Fates, after: Fates) -> None:
        """Adds the changes of the fates of a session's lookups."""
        _add(self._lookup_guesses, before, after)


def _add(counters: Mapping[str, Counter], before: Tally | Fates, after: Tally | Fates) -> None:
    for fate, counter in counters.items():
        if number := getattr(after, fate) - getattr(before, fate):
            counter.inc(number)
