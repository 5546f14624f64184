"""Timed models log their passes and steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.standins.compute_log import ComputeLog, read_compute_log
from benchmarks.standins.timed_models import TimedDraft, TimedEngine


def test_timed_models_log_what_they_compute_and_behave_as_before(tmp_path: Path) -> None:
    rows = [SimpleNamespace(token_ids=[1, 2, 3], start=10), SimpleNamespace(token_ids=[4], start=20)]
    with ComputeLog(tmp_path / "compute.jsonl") as log:
        computed = [SimpleNamespace(num_tokens=3), SimpleNamespace(num_tokens=1)]
        engine = TimedEngine(cast(Any, SimpleNamespace(name="e", step=lambda rows: computed)), log)
        draft = TimedDraft(cast(Any, SimpleNamespace(name="d", step=lambda rows: ["logits"] * len(rows))), log)
        assert engine.step(cast(Any, rows)) == computed
        assert draft.step(cast(Any, rows)) == ["logits", "logits"]
        assert (engine.name, draft.name) == ("e", "d")
    with (tmp_path / "compute.jsonl").open("ab") as file:
        file.write(b"[1.0, 2.0,")  # an incomplete line
    of_pass, of_step = read_compute_log(tmp_path / "compute.jsonl")
    assert (of_pass.num_sessions, of_pass.num_tokens, of_pass.num_cached) == (2, 4, 30)
    assert (of_step.num_sessions, of_step.num_tokens, of_step.num_cached) == (2, 4, 30)
    assert 0 <= of_pass.elapsed_ms < 1000
    assert of_pass.end_s <= of_step.start_s
