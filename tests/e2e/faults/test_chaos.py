"""A short form of `make chaos`: a fault of each part of the system, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.chaos.faults import FaultPlan, find_faketime
from benchmarks.chaos.load import Load
from benchmarks.chaos.questions import Lengths
from benchmarks.chaos.report import as_markdown
from benchmarks.chaos.run import run
from benchmarks.chaos.system import ChaosPlan
from benchmarks.harness.latency import OK

pytestmark = pytest.mark.timeout(600)

PLAN = {"drafts": ("int8", "int4"), "env": {"DSD_LEASE_S": "5"}}
KINDS = ("kill-verifier", "hang-drafter", "kill-gateway", "kill-nats", "partition", "full-disk", "clock")
FAULTS = FaultPlan(KINDS, seed=3, period_s=0.7, max_faults=len(KINDS))  # each once
LOAD = Load(
    12,
    num_clients=4,
    seed=3,
    lengths=Lengths((20, 80), (6, 12)),
    faults=FAULTS,
    has_single=False,
    has_rolling=False,
)
OF_MEMORY = "MiB more than at the start"


def test_a_fault_of_each_part_changes_no_text_fails_no_request_and_leaves_nothing(default_models: Path) -> None:
    plan = ChaosPlan(default_models, fake_clock=find_faketime(), **PLAN)
    result, records = asyncio.run(run(plan, LOAD, print))
    print(as_markdown(result))
    assert [each for each in result.violations if OF_MEMORY not in each] == []
    assert len(records) >= LOAD.num_requests
    assert {record.answer.status for record in records} == {OK}
    assert {fault.kind for fault in result.faults} == set(KINDS) - set(result.not_run)
    assert set(result.not_run) <= {"full-disk", "clock"}
