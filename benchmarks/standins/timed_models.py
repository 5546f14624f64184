"""Engines and draft models that log what they compute, and the processor time that their thread takes for it.

Invariant: the model, real or stand-in, behaves as without a log.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.standins.compute_log import ComputeLog

if TYPE_CHECKING:  # a timed drafter must not load torch
    import numpy as np

    from services.cloud_verifier.engine import Computed, Engine, StepRow
    from services.edge_drafter.model import DraftModel, DraftRow


class Timed:
    """An engine or a draft model with a log of what it computes."""

    def __init__(self, timed: Engine[Any] | DraftModel, log: ComputeLog) -> None:
        self._timed: Any = timed
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timed, name)


class TimedEngine(Timed):
    """An Engine that logs its steps, which are passes."""

    def step(self, rows: Sequence[StepRow[Any]]) -> list[Computed]:
        started, cpu_s = time.monotonic(), time.thread_time()
        computed: list[Computed] = self._timed.step(rows)
        num_tokens, num_cached = sum(each.num_tokens for each in computed), sum(row.start for row in rows)
        self._log.add(started, len(rows), num_tokens, num_cached, time.thread_time() - cpu_s)
        return computed


class TimedDraft(Timed):
    """A DraftModel that logs its steps."""

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        started, cpu_s = time.monotonic(), time.thread_time()
        logits: list[np.ndarray] = self._timed.step(rows)
        num_tokens, num_cached = sum(len(row.token_ids) for row in rows), sum(row.start for row in rows)
        self._log.add(started, len(rows), num_tokens, num_cached, time.thread_time() - cpu_s)
        return logits
