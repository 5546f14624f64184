"""Paced stand-ins: the real models, slowed down to the times of a profile.

Invariant: texts and guesses equal those of the real model to the bit. No pass or step is shorter than the profile says.
A longer one is logged as an overrun, which voids the figures of the run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import structlog

from benchmarks.harness.standin import OVERRUN, STANDIN
from benchmarks.standins.pacer import Pacer
from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine.kv import KvCache
from services.cloud_verifier.torch_engine.model import Row, TargetModel
from services.edge_drafter.graphs.graph import DraftCache
from services.edge_drafter.model import DraftModel, DraftRow
from shared.data.profiles import PassTimes, Profile, StepTimes

log = structlog.get_logger(__name__)


class PacedTarget:
    """A TargetModel with the pass times of a profile."""

    def __init__(self, model: TargetModel, profile: Profile) -> None:
        self.name = f"{STANDIN}-paced-{profile.name}-{model.name}"
        self.fingerprint = f"{STANDIN}-paced-{profile.name}-{model.fingerprint}"
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.pace = Pacer()
        self._model = model
        self._times = profile.pass_times

    def new_cache(self, capacity: int) -> KvCache:
        return self._model.new_cache(capacity)

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        started = time.perf_counter()
        drawn = self._model.step(rows)
        wait_for_pass(self.pace, started, self._times, rows)
        return drawn


class PacedDraft:
    """A DraftModel with the step times of a profile."""

    def __init__(self, model: DraftModel, profile: Profile) -> None:
        self.name = f"{STANDIN}-paced-{profile.name}-{model.name}"
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.max_rows = min(model.max_rows, profile.step_times.max_rows)
        self.num_nodes = model.num_nodes
        self.pace = Pacer()
        self._model = model
        self._times = profile.step_times

    def new_cache(self, capacity: int) -> DraftCache:
        return self._model.new_cache(capacity)

    @property
    def kv_bytes(self) -> int:
        return self._model.kv_bytes

    def num_caches(self, num_used: int, length: int) -> int:
        return self._model.num_caches(num_used, length)

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        started = time.perf_counter()
        logits = self._model.step(rows)
        wait_for_step(self.pace, started, self._times, rows)
        return logits


def wait_for_pass(pace: Pacer, started: float, times: PassTimes, rows: Sequence[Row]) -> None:
    """Waits until a pass over these rows has lasted as long as `times` says."""
    num_tokens, num_cached = sum(len(row.token_ids) for row in rows), sum(row.start for row in rows)
    wait_or_log(pace, started, times.pass_ms(len(rows), num_tokens, num_cached))


def wait_for_step(pace: Pacer, started: float, times: StepTimes, rows: Sequence[DraftRow]) -> None:
    """Waits until a draft step over these rows has lasted as long as `times` says."""
    num_tokens, num_cached = sum(len(row.token_ids) for row in rows), sum(row.start for row in rows)
    wait_or_log(pace, started, times.feed_ms(num_tokens, num_cached, len(rows)))


def wait_or_log(pace: Pacer, started: float, needed_ms: float) -> None:
    """Waits until `needed_ms` after `started`, or logs an overrun if that time has passed."""
    if not pace.wait(started, needed_ms):
        took_ms = (time.perf_counter() - started) * 1e3
        log.warning(OVERRUN, allowed_ms=round(needed_ms, 3), took_ms=round(took_ms, 3), num_overruns=pace.num_overruns)
