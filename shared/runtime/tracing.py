"""Traces of requests over OpenTelemetry, off unless an OTLP endpoint is set (docs/traces.md).

Invariant: without an endpoint nothing of OpenTelemetry is imported, and no request has a span. With one, only a request
that is sampled has spans. Times are seconds of `time.monotonic`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

from prometheus_client import CollectorRegistry

from shared.protocol.messages import Service
from shared.runtime import semconv
from shared.runtime.config import BadSettings

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
SAMPLER, SAMPLER_ARG = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *RATIO_SAMPLERS)

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value]
NONE: Attributes = MappingProxyType({})


class TraceSpan(Protocol):
    """A span of a sampled request, under way."""

    @property
    def traceparent(self) -> str:
        """Its W3C trace context, for messages to other services."""
        ...

    def begin(self, name: str, at: float, attributes: Attributes = NONE) -> TraceSpan:
        """A span inside this one."""
        ...

    def record(self, name: str, begin: float, end: float, attributes: Attributes = NONE) -> None:
        """A span inside this one that is over already."""
        ...

    def rename(self, name: str) -> None: ...

    def event(self, name: str, at: float, attributes: Attributes = NONE) -> None: ...

    def end(self, at: float, attributes: Attributes = NONE, error: str = "") -> None:
        """error: a short code of what went wrong; empty: nothing did."""
        ...


class Tracing(Protocol):
    """Begins the spans of this process."""

    def accept(self, headers: Mapping[str, str], name: str, at: float) -> TraceSpan | None:
        """The span of a client's request, inside the client's own if its headers name one; None: not sampled."""
        ...

    def follow(self, traceparent: str | None, name: str, at: float) -> TraceSpan | None:
        """A span inside one of another service; None: there is none, or it is not sampled here."""
        ...

    def register(self, registry: CollectorRegistry) -> None:
        """Shows what became of spans as metrics."""
        ...

    def close(self) -> None:
        """Sends the spans that wait. Blocks for a bounded time."""
        ...


class NoTracing:
    """Tracing that is off."""

    def accept(self, headers: Mapping[str, str], name: str, at: float) -> None:
        return None

    def follow(self, traceparent: str | None, name: str, at: float) -> None:
        return None

    def register(self, registry: CollectorRegistry) -> None: ...

    def close(self) -> None: ...


NO_TRACING = NoTracing()


def tracing_of(service: Service, instance_id: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """As OpenTelemetry's environment variables say. Raises BadSettings. A controller serves no request."""
    endpoint = next((each for each in ENDPOINTS if environment.get(each)), None)
    if endpoint is None or service == "controller" or _is_off(environment):
        return NO_TRACING
    _check(environment)
    try:
        from shared.runtime.otel import OtelTracing
    except ImportError as error:
        reason = f"OpenTelemetry can't be imported ({error}): pip install 'dsd-serving[otel]', or unset it"
        raise BadSettings(f"{endpoint} is set, but {reason}") from error
    try:
        return OtelTracing(service, instance_id)
    except ValueError as error:  # for example a batch that is larger than the queue
        raise BadSettings(f"OTEL_BSP_…: {error}") from error


def _is_off(environment: Mapping[str, str]) -> bool:
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return is_disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def _check(environment: Mapping[str, str]) -> None:
    """Raises BadSettings for what the SDK would replace by a default: that might sample every request."""
    for each in PROTOCOLS:
        if (protocol := environment.get(each) or PROTOCOL) != PROTOCOL:
            raise BadSettings(f"{each}: must be {PROTOCOL}, got {protocol!r}")
    sampler = (environment.get(SAMPLER) or SAMPLERS[0]).lower()
    if sampler not in SAMPLERS:
        raise BadSettings(f"{SAMPLER}: must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    ratio = environment.get(SAMPLER_ARG) or ""
    if sampler in RATIO_SAMPLERS and not _is_share(ratio):
        raise BadSettings(f"{SAMPLER_ARG}: {sampler} needs a share from 0 to 1, got {ratio!r}")


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


@dataclass(slots=True)
class WorkTrace:
    """The spans of a session at a service whose model works for it: queued, prefill, decode.

    Only a session that is traced has one, so only its model steps cost a call.
    """

    span: TraceSpan
    opened_at: float
    _began_at: float | None = None
    _first_at: float | None = None  # of the tokens
    _newest_at: float = 0.0
    _num_steps: int = 0
    _num_fed: int = 0
    _num_cached: int = 0
    _compute_ms: float = 0.0

    def worked(self, at: float, elapsed_ms: float, start: int, num_fed: int, *, has_token: bool) -> None:
        """A model step that ended at `at` fed the session's text from `start` on, and perhaps yielded tokens."""
        if self._began_at is None:
            self._began_at, self._num_cached = max(self.opened_at, at - elapsed_ms / 1e3), start
        self._num_steps += 1
        self._num_fed += num_fed
        self._compute_ms += elapsed_ms
        if has_token:
            self._newest_at = at
            if self._first_at is None:
                self._first_at = at

    def end(self, now: float, attributes: Attributes, error: str = "", *, is_complete: bool) -> None:
        """is_complete: the work ended with its newest token, else it ends now."""
        at = self._newest_at if is_complete and self._first_at is not None else now
        began_at = at if self._began_at is None else self._began_at
        first_at = at if self._first_at is None else self._first_at
        self.span.record(semconv.QUEUED, self.opened_at, began_at)
        if self._began_at is not None:
            self.span.record(semconv.PREFILL, began_at, first_at, {semconv.CACHED_TOKENS: self._num_cached})
        if self._first_at is not None:
            self.span.record(semconv.DECODE, first_at, at)
        work = {
            semconv.NUM_STEPS: self._num_steps,
            semconv.FED_TOKENS: self._num_fed,
            semconv.COMPUTE_MS: round(self._compute_ms, 3),
        }
        self.span.end(at, {**work, **attributes}, error)
