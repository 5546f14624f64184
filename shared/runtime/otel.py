"""Tracing by OpenTelemetry's SDK (the extra `otel`), configured by its own environment variables.

Invariant: spans harm no request. One that has ended goes into a bounded queue of the SDK, whose thread sends it; what
the queue has no room for, and what the receiver does not take, is lost. The end of the process waits FLUSH_S at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from shared.runtime import semconv
from shared.runtime.metrics import TraceMetrics
from shared.runtime.tracing import NONE, Attributes

FLUSH_S = 2.0
SCOPE, PACKAGE = "dsd", "dsd-serving"

_W3C = TraceContextTextMapPropagator()


class OtelSpan:
    """A TraceSpan of the SDK."""

    __slots__ = ("_epoch", "_span", "_tracing")

    def __init__(self, tracing: OtelTracing, span: Any, epoch: float) -> None:
        """epoch: the wall clock's time when time.monotonic was 0. All spans of a request in this process have the same,
        so that no step of the wall clock gets between them."""
        self._tracing = tracing
        self._span = span
        self._epoch = epoch

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"

    def begin(self, name: str, at: float, attributes: Attributes = NONE) -> OtelSpan:
        parent = trace.set_span_in_context(self._span)
        span = self._tracing.tracer.start_span(name, parent, attributes=dict(attributes), start_time=self._ns(at))
        return OtelSpan(self._tracing, span, self._epoch)

    def record(self, name: str, begin: float, end: float, attributes: Attributes = NONE) -> None:
        self.begin(name, begin, attributes).end(end)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def event(self, name: str, at: float, attributes: Attributes = NONE) -> None:
        self._span.add_event(name, dict(attributes), self._ns(at))

    def end(self, at: float, attributes: Attributes = NONE, error: str = "") -> None:
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_attribute(semconv.ERROR_TYPE, error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._ns(at))
        self._tracing.spans.labels("ended").inc()

    def _ns(self, at: float) -> int:
        return int((self._epoch + at) * 1e9)


class OtelTracing:
    """Tracing by a TracerProvider of this instance's own."""

    def __init__(self, service: str, instance_id: str) -> None:
        self.spans = TraceMetrics(None).spans
        exporter: Any = _CountingExporter(OTLPSpanExporter(), self.spans.labels("sent"))
        self._exporter = exporter
        own = {
            "service.name": f"dsd-{service}",
            "service.instance.id": instance_id,
            "service.version": version(PACKAGE),
        }
        resource = Resource.create(own).merge(OTELResourceDetector().detect())  # the environment's names win
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer(SCOPE)

    def accept(self, headers: Mapping[str, str], name: str, at: float) -> OtelSpan | None:
        known = {"traceparent": headers.get("traceparent", "")}  # a tracestate is text that a client words
        return self._begin(_W3C.extract(known), name, at)

    def follow(self, traceparent: str | None, name: str, at: float) -> OtelSpan | None:
        if traceparent is None:
            return None
        context = _W3C.extract({"traceparent": traceparent})
        is_valid = trace.get_current_span(context).get_span_context().is_valid  # else it would begin a trace of its own
        return self._begin(context, name, at) if is_valid else None

    def register(self, registry: CollectorRegistry) -> None:
        registry.register(self.spans)

    def close(self) -> None:
        ending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        if ending.is_alive():
            self._exporter.shutdown()  # it tries no more

    def _begin(self, context: Any, name: str, at: float) -> OtelSpan | None:
        epoch = time.time() - time.monotonic()
        span = self.tracer.start_span(name, context, SpanKind.SERVER, start_time=int((epoch + at) * 1e9))
        return OtelSpan(self, span, epoch) if span.is_recording() else None


class _CountingExporter:
    """An exporter that counts the spans that the receiver has taken."""

    def __init__(self, exporter: Any, sent: Any) -> None:
        self._exporter = exporter
        self._sent = sent

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._sent.inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True
