"""Prometheus metrics of a verifier (docs/metrics.md)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.protocol.messages import Load, Tally

FATES = ("accepted", "rejected", "late", "discarded")


class VerifierMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.pass_seconds = Histogram(
            "dsd_verifier_pass_seconds",
            "Time of one verify pass",
            buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
            registry=registry,
        )
        self.pass_sessions = Histogram(
            "dsd_verifier_pass_sessions",
            "Sessions in one pass",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.fed_tokens = Counter("dsd_verifier_fed_tokens", "Tokens computed in passes", registry=registry)
        self.prefix_tokens = Counter(
            "dsd_verifier_prefix_tokens", "Tokens copied from a KV cache of another session", registry=registry
        )
        self.preemptions = Counter(
            "dsd_verifier_preemptions", "Sessions that lost their KV cache to another one", registry=registry
        )
        self.committed_tokens = Counter(
            "dsd_verifier_committed_tokens", "Tokens fixed by the target", registry=registry
        )
        self.guesses = Counter(
            "dsd_verifier_guesses", "Guesses received, by what became of them", ["fate"], registry=registry
        )
        self.dropped = Counter(
            "dsd_verifier_dropped", "Messages not acted upon, by reason", ["reason"], registry=registry
        )
        self.failed_passes = Counter("dsd_verifier_failed_passes", "Passes that raised an error", registry=registry)
        self.expired_sessions = Counter(
            "dsd_verifier_expired_sessions", "Sessions closed by their lease", registry=registry
        )
        self.sessions = Gauge("dsd_verifier_sessions", "Open sessions", registry=registry)
        self.queue_tokens = Gauge("dsd_verifier_queue_tokens", "Tokens waiting to be computed", registry=registry)
        self.free_kv_tokens = Gauge(
            "dsd_verifier_free_kv_tokens", "KV cache that a new session gets at once, in tokens", registry=registry
        )

    def observe_pass(self, elapsed_ms: float, num_sessions: int, num_tokens: int, num_committed: int) -> None:
        self.pass_seconds.observe(elapsed_ms / 1e3)
        self.pass_sessions.observe(num_sessions)
        self.fed_tokens.inc(num_tokens)
        self.committed_tokens.inc(num_committed)

    def observe_load(self, load: Load) -> None:
        self.sessions.set(load.num_sessions)
        self.queue_tokens.set(load.queue_tokens)
        self.free_kv_tokens.set(load.free_kv_tokens)

    def count_guesses(self, before: Tally, after: Tally) -> None:
        """Adds the difference of a session's two tallies."""
        for fate in FATES:
            self.guesses.labels(fate).inc(getattr(after, fate) - getattr(before, fate))
