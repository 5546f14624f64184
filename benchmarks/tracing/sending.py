"""Processor time that OpenTelemetry's exporter takes for a span, in the thread that sends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

BATCH, NUM_ATTRIBUTES = 512, 8


@dataclass(slots=True)
class Sink:
    """An OTLP endpoint that keeps nothing."""

    url: str = ""
    num_batches: int = 0

    async def take(self, request: web.Request) -> web.Response:
        await request.read()
        self.num_batches += 1
        return web.Response(content_type="application/x-protobuf")


@asynccontextmanager
async def sink() -> AsyncIterator[Sink]:
    """A running Sink on a free port of this machine."""
    made, app = Sink(), web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


async def sending_us(url: str, repeats: int) -> float:
    """Microseconds of the sending thread for a span, in batches as full as the SDK makes them."""
    return await asyncio.to_thread(_sending_us, url, repeats)


def _sending_us(url: str, repeats: int) -> float:
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("dsd")
    for _ in range(BATCH):
        tracer.start_span("decode", attributes={f"dsd.count.{i}": i for i in range(NUM_ATTRIBUTES)}).end()
    spans = kept.get_finished_spans()
    exporter: Any = OTLPSpanExporter(f"{url}/v1/traces")
    exporter.export(spans)  # connects
    began = time.thread_time()
    for _ in range(repeats):
        exporter.export(spans)
    took_s = time.thread_time() - began
    exporter.shutdown()
    return took_s / repeats / BATCH * 1e6
