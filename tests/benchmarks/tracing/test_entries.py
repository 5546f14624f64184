"""What counts as tracing in a profile."""

from __future__ import annotations

import cProfile
import time
from pathlib import Path

from benchmarks.tracing.entries import entries
from shared.runtime.tracing import NO_TRACING, TraceSpan, WorkTrace


class Span:
    """A TraceSpan that takes its time."""

    traceparent = ""

    def begin(self, name: str, at: float, attributes: object = None) -> TraceSpan:
        raise NotImplementedError

    def record(self, name: str, begin: float, end: float, attributes: object = None) -> None:
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass

    def rename(self, name: str) -> None: ...

    def event(self, name: str, at: float, attributes: object = None) -> None: ...

    def end(self, at: float, attributes: object = None, error: str = "") -> None: ...


def work() -> None:
    for _ in range(3):
        NO_TRACING.accept({}, "request", 0.0)
    trace = WorkTrace(Span(), 0.0)
    trace.worked(1.0, 5.0, 0, 8, has_token=True)
    trace.end(2.0, {}, is_complete=False)  # records three spans


def test_a_call_counts_once_with_all_that_it_calls(tmp_path: Path) -> None:
    profile = cProfile.Profile()
    profile.runcall(work)
    profile.dump_stats(tmp_path / "a.prof")
    found = entries(tmp_path / "a.prof")
    assert found.num_calls == 3 + 2
    assert 0.03 <= found.seconds < 0.3
    assert found.num_spans == 0


def test_a_process_that_traces_nothing_costs_nothing(tmp_path: Path) -> None:
    profile = cProfile.Profile()
    profile.runcall(sum, range(10))
    profile.dump_stats(tmp_path / "a.prof")
    assert entries(tmp_path / "a.prof").num_calls == 0
