"""Prometheus metrics of a gateway (docs/metrics.md lists them with their meaning)."""

from __future__ import annotations

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.gateway.session.outcome import SessionOutcome

TTFT_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class GatewayMetrics:
    """All metrics of one gateway in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("dsd_gateway_requests", "Answers given", ["endpoint", "status"], registry=registry)
        self.sessions = Gauge("dsd_gateway_sessions", "Sessions in flight", registry=registry)
        self.queue = Gauge("dsd_gateway_queue", "Requests that wait for a slot", registry=registry)
        self.queue_seconds = Histogram(
            "dsd_gateway_queue_seconds", "Wait for a slot", buckets=TTFT_BUCKETS, registry=registry
        )
        self.refused = Counter(
            "dsd_gateway_refused", "Requests refused by a limit, by reason", ["reason"], registry=registry
        )
        self.keys = Gauge("dsd_gateway_keys", "Valid API keys", registry=registry)
        self.key_reloads = Counter(
            "dsd_gateway_key_reloads", "Changed key files, by outcome", ["outcome"], registry=registry
        )
        self.key_requests = Counter(
            "dsd_gateway_key_requests", "Admitted requests, by the key's name", ["key"], registry=registry
        )
        self.key_tokens = Counter(
            "dsd_gateway_key_tokens", "Tokens of prompts and answers, by the key's name", ["key"], registry=registry
        )
        self.peers = Gauge("dsd_gateway_peers", "Live instances", ["service"], registry=registry)
        self.prompt_tokens = Counter("dsd_gateway_prompt_tokens", "Tokens of prompts", registry=registry)
        self.output_tokens = Counter("dsd_gateway_output_tokens", "Tokens fixed for answers", registry=registry)
        self.guesses = Counter(
            "dsd_gateway_guesses", "Guesses that reached a verifier, by their fate", ["fate"], registry=registry
        )
        self.passes = Counter("dsd_gateway_passes", "Verify passes that fixed tokens of a session", registry=registry)
        self.failovers = Counter("dsd_gateway_failovers", "Sessions moved to another verifier", registry=registry)
        self.drafter_changes = Counter(
            "dsd_gateway_drafter_changes", "Changes of drafter in running sessions", registry=registry
        )
        self.conflicts = Counter(
            "dsd_gateway_conflicts", "Verdicts that contradict tokens already sent on", registry=registry
        )
        self.polls = Counter("dsd_gateway_polls", "Polls sent after silence or a gap", registry=registry)
        self.failed_sessions = Counter(
            "dsd_gateway_failed_sessions", "Failed sessions, by code", ["code"], registry=registry
        )
        self.dropped = Counter("dsd_gateway_dropped", "Dropped messages, by reason", ["reason"], registry=registry)
        self.ttft_seconds = Histogram(
            "dsd_gateway_ttft_seconds", "Time to first token", buckets=TTFT_BUCKETS, registry=registry
        )
        self.tpot_seconds = Histogram(
            "dsd_gateway_tpot_seconds", "Time per output token after the first", buckets=TPOT_BUCKETS, registry=registry
        )

    def count_request(self, key_name: str, num_tokens: int) -> None:
        """Adds an admitted request at its end. Without keys (`key_name` empty) nothing is counted."""
        if key_name:
            self.key_requests.labels(key_name).inc()
            self.key_tokens.labels(key_name).inc(num_tokens)

    def forget_keys(self, names: set[str]) -> None:
        """Drops the labels of removed keys."""
        for name in names:
            for counter in (self.key_requests, self.key_tokens):
                with contextlib.suppress(KeyError):  # it was never used
                    counter.remove(name)

    def count_session(self, outcome: SessionOutcome) -> None:
        """Adds a session at its end."""
        tally, incidents = outcome.tally, outcome.incidents
        self.prompt_tokens.inc(outcome.num_prompt_tokens)
        self.output_tokens.inc(outcome.num_output_tokens)
        self.guesses.labels("accepted").inc(tally.accepted)
        self.guesses.labels("rejected").inc(tally.rejected)
        self.guesses.labels("late").inc(tally.late)
        self.guesses.labels("discarded").inc(tally.discarded)
        self.passes.inc(tally.num_passes)
        self.failovers.inc(incidents.failovers)
        self.drafter_changes.inc(incidents.drafter_changes)
        self.conflicts.inc(incidents.conflicts)
        if outcome.failure_code is not None:
            self.failed_sessions.labels(outcome.failure_code).inc()
