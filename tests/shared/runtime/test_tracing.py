"""Tracing's environment variables, and receivers that are down or slow."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.semconv import _incubating, attributes
from prometheus_client import CollectorRegistry

from shared.runtime import semconv
from shared.runtime.config import BadSettings
from shared.runtime.otel import FLUSH_S
from shared.runtime.tracing import ENDPOINTS, NO_TRACING, Tracing, tracing_of
from tests.otlp import Receiver, receiving, tracing_to

ROOT = Path(__file__).parents[3]
NOBODY = "http://127.0.0.1:1"
QUEUE = {"BSP_MAX_QUEUE_SIZE": "64", "BSP_MAX_EXPORT_BATCH_SIZE": "16"}
NUM_SPANS = 500


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def spans(tracing: Tracing, num: int) -> None:
    """Writes requests of one span each."""
    for _ in range(num):
        now = time.monotonic()
        span = tracing.accept({}, "request", now)
        assert span is not None
        span.end(now)


def count(tracing: Tracing, stage: str) -> float:
    registry = CollectorRegistry()
    tracing.register(registry)
    return registry.get_sample_value("dsd_trace_spans_total", {"stage": stage}) or 0.0


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINTS[0]: ""},
        {ENDPOINTS[1]: NOBODY, "OTEL_SDK_DISABLED": "true"},
        {ENDPOINTS[1]: NOBODY, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_switched_off_there_is_no_tracing(environment: dict[str, str]) -> None:
    assert tracing_of("gateway", "gateway.0123456789ab", environment) is NO_TRACING


def test_a_controller_has_no_requests_to_trace() -> None:
    assert tracing_of("controller", "controller.0123456789ab", {ENDPOINTS[1]: NOBODY}) is NO_TRACING


@pytest.mark.parametrize("service", ["gateway", "edge_drafter", "cloud_verifier"])
def test_a_service_that_traces_nothing_loads_nothing_of_opentelemetry(service: str) -> None:
    code = (
        f"import services.{service}.service, sys\nfrom shared.runtime.tracing import tracing_of\n"
        "tracing_of('gateway', 'gateway.0123456789ab')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = run(code)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf, got 'grpc'"),
        ("EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "must be http/protobuf, got 'http/json'"),
        ("TRACES_SAMPLER", "sometimes", "must be one of always_on, .*, got 'sometimes'"),
        ("TRACES_SAMPLER_ARG", "1 %", "parentbased_traceidratio needs a share from 0 to 1, got '1 %'"),
        ("TRACES_SAMPLER_ARG", "1.5", "parentbased_traceidratio needs a share from 0 to 1, got '1.5'"),
        ("TRACES_SAMPLER_ARG", "", "parentbased_traceidratio needs a share from 0 to 1, got ''"),
        ("BSP_MAX_EXPORT_BATCH_SIZE", "100000", "max_export_batch_size"),
    ],
)
def test_a_value_that_would_be_replaced_by_a_default_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    ratio = {"TRACES_SAMPLER": "parentbased_traceidratio", "TRACES_SAMPLER_ARG": "0.01"}
    with pytest.raises(BadSettings, match=why):
        tracing_to(monkeypatch, "gateway", NOBODY, **{**ratio, name: value})


def test_where_opentelemetry_is_missing_a_service_with_an_endpoint_refuses_with_one_line() -> None:
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\nsys.argv = ['sample']\n"
        "from tests.shared.sample_service import main\nmain()"
    )
    done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=NOBODY)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry can't be imported")
    assert "pip install 'dsd-serving[otel]'" in line


async def test_spans_tell_their_service_and_the_environment_may_name_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ({}, {"SERVICE_NAME": "ours"}):
        tracing = tracing_to(monkeypatch, "gateway", receiver.url, **more)
        spans(tracing, 1)
        await receiver.until(lambda: len(receiver.spans) == 1)
        (span,) = receiver.spans
        assert (span.service, span.instance) == (more.get("SERVICE_NAME", "dsd-gateway"), "gateway.0123456789ab")
        assert count(tracing, "ended") == 1
        receiver.spans.clear()


def test_the_names_of_conventions_are_those_of_opentelemetry() -> None:
    known = set()
    for package in (_incubating.attributes, attributes):
        (folder,) = package.__path__
        for path in Path(folder).glob("*_attributes.py"):
            known |= {line.split('"')[1] for line in path.read_text().splitlines() if ': Final = "' in line}
    ours = [value for value in vars(semconv).values() if isinstance(value, str) and "." in value]
    names = [name for name in ours if name.startswith(("gen_ai.", "http.", "error."))]
    assert len(names) > 15
    assert set(names) <= known


# --- receivers --------------------------------------------------------------------------------------------------------


def test_spans_for_a_receiver_that_is_down_are_lost_and_cost_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = tracing_to(monkeypatch, "gateway", NOBODY, **QUEUE)
    began = time.monotonic()
    spans(tracing, NUM_SPANS)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < 2 * FLUSH_S
    assert (count(tracing, "ended"), count(tracing, "sent")) == (NUM_SPANS, 0)


async def test_of_the_spans_for_a_slow_receiver_a_bounded_number_waits(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.slow.clear()
    tracing = tracing_to(monkeypatch, "gateway", receiver.url, **QUEUE)
    spans(tracing, 16)
    await receiver.until(lambda: receiver.num_requests == 1)
    spans(tracing, NUM_SPANS)
    receiver.slow.set()
    await receiver.until(lambda: len(receiver.spans) == 16 + 64)
    tracing.close()
    assert count(tracing, "ended") == 16 + NUM_SPANS
    assert len(receiver.spans) == 16 + 64


async def test_the_end_of_a_process_sends_what_waits(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = tracing_to(monkeypatch, "gateway", receiver.url, BSP_SCHEDULE_DELAY="3600000")
    spans(tracing, 3)
    await asyncio.to_thread(tracing.close)
    assert len(receiver.spans) == 3
    assert count(tracing, "sent") == 3
