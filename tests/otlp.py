"""An OTLP receiver for tests, and the traces that it got.

The wire format is read with OpenTelemetry's own definitions (opentelemetry-proto).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from shared.protocol.messages import Service
from shared.runtime.otel import OtelTracing
from shared.runtime.tracing import Tracing, tracing_of

WAIT_S = 30.0
PATH = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it was received. Times are nanoseconds. service: service.name of its resource."""

    service: str
    instance: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str  # "" for a root
    begin: int
    end: int
    attributes: dict[str, Any]
    events: list[Event]
    failed: bool
    state: str  # tracestate

    @property
    def ns(self) -> int:
        return self.end - self.begin


@dataclass(slots=True)
class Trace:
    """All received spans of one trace."""

    spans: list[Span]

    def named(self, name: str, service: str = "") -> list[Span]:
        """By their beginning."""
        found = [span for span in self.spans if span.name == name and span.service.endswith(service)]
        return sorted(found, key=lambda span: span.begin)

    def one(self, name: str, service: str = "") -> Span:
        (span,) = self.named(name, service)
        return span

    @property
    def root(self) -> Span:
        """The span whose parent is not among them."""
        ids = {span.span_id for span in self.spans}
        (root,) = [span for span in self.spans if span.parent_id not in ids]
        return root

    def children(self, parent: Span) -> list[Span]:
        return sorted((span for span in self.spans if span.parent_id == parent.span_id), key=lambda span: span.begin)

    def leaves(self, service: str) -> list[Span]:
        """The spans of a service that have none of that service inside."""
        own = [span for span in self.spans if span.service.endswith(service)]
        parents = {span.parent_id for span in own}
        return [span for span in own if span.span_id not in parents]


def share(whole: Span, parts: Iterable[Span]) -> float:
    """The share of a span's time in which at least one of the others runs."""
    covered, until = 0, whole.begin
    for part in sorted(parts, key=lambda span: span.begin):
        begin, end = max(part.begin, until), min(part.end, whole.end)
        covered += max(0, end - begin)
        until = max(until, end)
    return covered / whole.ns


@dataclass(slots=True)
class Receiver:
    """What an OTLP endpoint got. `slow`: it answers only while this is set."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    num_requests: int = 0
    slow: asyncio.Event = field(default_factory=asyncio.Event)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    async def export(self, request: web.Request) -> web.Response:
        self.num_requests += 1
        self._more.set()
        body = await request.read()
        await self.slow.wait()
        assert request.content_type == "application/x-protobuf"
        self.spans += spans_of(ExportTraceServiceRequest.FromString(body))
        self._more.set()
        return web.Response(content_type="application/x-protobuf")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns once `holds`, which is looked at when something has come."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                self._more.clear()
                await self._more.wait()

    async def trace(self, *names: str, without: Iterable[Trace] = ()) -> Trace:
        """The one trace beside others that has spans of all these names, once it has them."""
        known = {trace.spans[0].trace_id for trace in without}

        def found() -> list[Trace]:
            traces = [trace for trace in self.traces if trace.spans[0].trace_id not in known]
            return [trace for trace in traces if set(names) <= {f"{s.service[4:]} {s.name}" for s in trace.spans}]

        await self.until(lambda: bool(found()))
        (trace,) = found()
        return trace

    @property
    def traces(self) -> list[Trace]:
        by_id: dict[str, list[Span]] = {}
        for span in self.spans:
            by_id.setdefault(span.trace_id, []).append(span)
        return [Trace(spans) for spans in by_id.values()]


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    found = []
    for resource_spans in request.resource_spans:
        about = values(resource_spans.resource.attributes)
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                events = [Event(event.name, values(event.attributes)) for event in span.events]
                found.append(
                    Span(
                        about["service.name"],
                        about["service.instance.id"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        values(span.attributes),
                        events,
                        span.status.code == Status.STATUS_CODE_ERROR,
                        span.trace_state,
                    )
                )
    return found


def values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {each.key: value_of(each.value) for each in attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return getattr(value, kind)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port of this machine."""
    receiver = Receiver()
    receiver.slow.set()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post(PATH, receiver.export)
    server = TestServer(app)
    await server.start_server()
    receiver.url = str(server.make_url("/")).rstrip("/")
    try:
        yield receiver
    finally:
        receiver.slow.set()
        await server.close()


def set_environment(patch: pytest.MonkeyPatch, url: str, **more: str) -> None:
    """As an operator would, with a quick batch. more: OTEL_ variables without that prefix."""
    chosen = {"EXPORTER_OTLP_ENDPOINT": url, "BSP_SCHEDULE_DELAY": "20", **more}
    for name, value in chosen.items():
        patch.setenv(f"OTEL_{name}", value)


def tracing_to(patch: pytest.MonkeyPatch, service: Service, url: str, **more: str) -> Tracing:
    """Tracing of a service in this process."""
    set_environment(patch, url, **more)
    tracing = tracing_of(service, f"{service}.0123456789ab")
    assert isinstance(tracing, OtelTracing)
    return tracing
