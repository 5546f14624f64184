"""Prometheus metrics of a gateway (docs/metrics.md lists them with their meaning)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.gateway.fleet.missing import LostPeer
from shared.protocol.guesses import FATES
from shared.protocol.messages import FailureCode, Tally
from shared.runtime.metrics import begin_at_zero

TTFT_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
E2E_BUCKETS = (0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
REJECTIONS = (
    "invalid_api_key",
    "requests_per_minute",
    "tokens_per_minute",
    "max_sessions",
    "queue_full",
    "queue_timeout",
    "deadline_exceeded",
)
PEER = ("service", "peer")
TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """What a session adds to the metrics at its end. failure: why it failed, if it did."""

    num_prompt_tokens: int
    num_output_tokens: int
    tally: Tally
    num_failovers: int
    num_drafter_changes: int
    num_conflicts: int
    failure: FailureCode | None


class GatewayMetrics:
    """All metrics of one gateway in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter("dsd_gateway_requests", "Answers given", ["endpoint", "status"])
        self.connections = gauge("dsd_gateway_connections", "Open HTTP connections")
        self.sessions = gauge("dsd_gateway_sessions", "Sessions in flight")
        self.queue = gauge("dsd_gateway_num_requests_waiting", "Requests that wait for a slot")
        self.queue_seconds = histogram(
            "dsd_gateway_request_queue_time_seconds", "Wait for a slot", buckets=TTFT_BUCKETS
        )
        self.refused = counter("dsd_gateway_admission_rejections", "Requests refused by a limit, by reason", ["reason"])
        begin_at_zero(self.refused, REJECTIONS)
        self.keys = gauge("dsd_gateway_keys", "Valid API keys")
        self.key_reloads = counter("dsd_gateway_key_reloads", "Changed key files, by outcome", ["outcome"])
        self.key_requests = counter("dsd_gateway_key_requests", "Admitted requests, by the key's name", ["key"])
        self.key_tokens = counter("dsd_gateway_key_tokens", "Tokens of prompts and answers, by the key's name", ["key"])
        self.peers = gauge("dsd_gateway_peers", "Known instances, until their heartbeats are stale", ["service"])
        self.lost_peers = counter("dsd_gateway_lost_peers", "Instances that left without a drain", ["service"])
        begin_at_zero(self.lost_peers, ("verifier", "drafter", "controller"))
        self.missing_peers = gauge(
            "dsd_gateway_missing_peers", "1 for each name that left without a drain and has not come back", PEER
        )
        self._missing: frozenset[LostPeer] = frozenset()
        self.prompt_tokens = counter("dsd_gateway_prompt_tokens", "Tokens of prompts")
        self.output_tokens = counter("dsd_gateway_generation_tokens", "Tokens fixed for answers")
        self.guesses = counter("dsd_gateway_guesses", "Guesses that reached a verifier, by their fate", ["fate"])
        self.passes = counter("dsd_gateway_passes", "Verify passes that fixed tokens of a session")
        self.failovers = counter("dsd_gateway_failovers", "Sessions moved to another verifier")
        self.drafter_changes = counter("dsd_gateway_drafter_changes", "Changes of drafter in running sessions")
        self.conflicts = counter("dsd_gateway_conflicts", "Verdicts that contradict tokens already sent on")
        self.polls = counter("dsd_gateway_polls", "Polls sent after silence or a gap")
        self.failed_sessions = counter("dsd_gateway_failed_sessions", "Failed sessions, by code", ["code"])
        begin_at_zero(self.failed_sessions, get_args(FailureCode))
        self.dropped = counter("dsd_gateway_dropped_messages", "Dropped messages, by reason", ["reason"])
        self.ttft_seconds = histogram(
            "dsd_gateway_time_to_first_token_seconds", "Time to first token", buckets=TTFT_BUCKETS
        )
        self.tpot_seconds = histogram(
            "dsd_gateway_request_time_per_output_token_seconds",
            "Time per output token after the first",
            buckets=TPOT_BUCKETS,
        )
        self.e2e_seconds = histogram(
            "dsd_gateway_e2e_request_latency_seconds", "Time of a whole answer", buckets=E2E_BUCKETS
        )

    def count_request(self, key_name: str, num_tokens: int) -> None:
        """Adds an admitted request at its end. Without keys (`key_name` empty) nothing is counted."""
        if key_name:
            self.key_requests.labels(key_name).inc()
            self.key_tokens.labels(key_name).inc(num_tokens)

    def count_lost(self, lost: Iterable[LostPeer]) -> None:
        """Adds instances that left without a drain."""
        for peer in lost:
            self.lost_peers.labels(peer.service).inc()

    def show_missing(self, missing: frozenset[LostPeer]) -> None:
        """Those that have not come back; the others' labels go."""
        for peer in self._missing - missing:
            self.missing_peers.remove(peer.service, peer.name)
        for peer in missing - self._missing:
            self.missing_peers.labels(peer.service, peer.name).set(1)
        self._missing = missing

    def forget_keys(self, names: set[str]) -> None:
        """Drops the labels of removed keys."""
        for name in names:
            for counter in (self.key_requests, self.key_tokens):
                with contextlib.suppress(KeyError):  # it was never used
                    counter.remove(name)

    def count_session(self, session: SessionCounts) -> None:
        self.prompt_tokens.inc(session.num_prompt_tokens)
        self.output_tokens.inc(session.num_output_tokens)
        for fate in FATES:
            self.guesses.labels(fate).inc(getattr(session.tally, fate))
        self.passes.inc(session.tally.num_passes)
        self.failovers.inc(session.num_failovers)
        self.drafter_changes.inc(session.num_drafter_changes)
        self.conflicts.inc(session.num_conflicts)
        if session.failure is not None:
            self.failed_sessions.labels(session.failure).inc()
