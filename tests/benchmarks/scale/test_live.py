"""A tiny cell of the benchmark of scale, on real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale.cells import Cell, Timing
from benchmarks.scale.measuring import BUSY, Run, measure
from benchmarks.scale.results import SERVICES
from tests.benchmarks.scale.sample_results import ORIGIN


@pytest.mark.timeout(120)
async def test_a_cell_has_costs_of_every_service_and_counts_of_the_bus(default_models: Path) -> None:
    run = Run(default_models, Timing(idle_s=1.0, slice_s=1.0, num_slices=2), "digest", ORIGIN, may_be_busy=True)
    cell = Cell(sessions=6, drafters=4, verifiers=1, answer_tokens=12)
    result = await measure(run, cell, slower=5.0, notify=print)
    assert result.complaints == [BUSY]
    loaded = result.loaded
    assert loaded.num_tokens > 50
    assert loaded.num_requests > 5
    assert all(loaded.cpu_s[name] >= 0 for name in SERVICES)
    assert loaded.cpu_s["gateway"] > result.idle.cpu_s["gateway"]
    assert loaded.model_cpu_s > 0
    # Drafts and verdicts, the latter to gateway and drafter.
    assert loaded.bus.published > loaded.num_requests
    assert loaded.bus.delivered_bytes > loaded.num_tokens
    assert result.acceptance is not None
    assert 0.4 < result.acceptance < 0.95
    assert result.tpot_ms.mean > 10
    assert result.loaded_mib["verifier"] > 20
