"""Services whose models note when they computed: python -m benchmarks.validation.clock FILE SERVICE [stand-in].

Invariant: a service and its model, or a stand-in for one, do what they do without a clock; each pass or draft step adds
a line to FILE when it is over. Seconds are of the machine's monotonic clock, alike in all of its processes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from benchmarks.standins.settings import STANDIN, StandinDrafterSettings, StandinVerifierSettings
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.settings import DrafterSettings
from shared.runtime.config import load

if TYPE_CHECKING:  # a drafter need not load torch
    import numpy as np

    from services.cloud_verifier.engine import Drawn
    from services.cloud_verifier.torch_engine.model import Row, TargetModel
    from services.edge_drafter.model import DraftCache, DraftModel

PROG = "python -m benchmarks.validation.clock"


class Computed(msgspec.Struct, frozen=True, array_like=True):
    """A pass, or a draft step (of one session)."""

    start_s: float
    end_s: float
    num_sessions: int
    num_tokens: int  # fed
    num_cached: int  # tokens in the caches before

    @property
    def elapsed_ms(self) -> float:
        return (self.end_s - self.start_s) * 1e3


class Notes:
    """The file; for one thread. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, start_s: float, num_sessions: int, num_tokens: int, num_cached: int) -> None:
        """What began at `start_s` is over."""
        computed = Computed(start_s, time.monotonic(), num_sessions, num_tokens, num_cached)
        self._file.write(msgspec.json.encode(computed) + b"\n")


def read_notes(path: Path) -> list[Computed]:
    """All whole lines of a file, also while its service runs."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=Computed) for line in whole.splitlines()]


class ClockedTarget:
    """A TargetModel with a clock; all but its passes is left to the model."""

    def __init__(self, model: TargetModel, notes: Notes) -> None:
        self._model = model
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        started = time.monotonic()
        drawn = self._model.step(rows)
        self._notes.add(started, len(rows), sum(len(row.token_ids) for row in rows), sum(row.start for row in rows))
        return drawn


class ClockedDraft:
    """Likewise a DraftModel."""

    def __init__(self, model: DraftModel, notes: Notes) -> None:
        self._model = model
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        started = time.monotonic()
        logits = self._model.feed(cache, token_ids, start)
        self._notes.add(started, 1, len(token_ids), start)
        return logits


def run_verifier(notes: Notes, *, is_standin: bool) -> None:
    settings = load(StandinVerifierSettings if is_standin else VerifierSettings, [], PROG)
    from services.cloud_verifier import service
    from services.cloud_verifier.torch_engine.engine import TorchEngine, load_model

    if is_standin:
        from benchmarks.standins import __main__ as standin

        load_model = standin.load_target

    def load_engine(settings: VerifierSettings) -> TorchEngine:
        clocked = cast("TargetModel", ClockedTarget(load_model(settings), notes))
        return TorchEngine(clocked, settings.kv_tokens)

    service.run(settings, load_engine)


def run_drafter(notes: Notes, *, is_standin: bool) -> None:
    settings = load(StandinDrafterSettings if is_standin else DrafterSettings, [], PROG)
    from services.edge_drafter import service

    load_model = service.load_model
    if is_standin:
        from benchmarks.standins import __main__ as standin

        load_model = standin.load_draft
    service.run(settings, lambda given: cast("DraftModel", ClockedDraft(load_model(given), notes)))


RUNS = {"cloud_verifier": run_verifier, "edge_drafter": run_drafter}


def main(argv: Sequence[str]) -> None:
    if len(argv) not in (2, 3) or argv[1] not in RUNS or list(argv[2:]) not in ([], [STANDIN]):
        print(f"{PROG}: FILE {'|'.join(RUNS)} [{STANDIN}]", file=sys.stderr)
        raise SystemExit(2)
    with Notes(Path(argv[0])) as notes:
        RUNS[argv[1]](notes, is_standin=len(argv) == 3)


if __name__ == "__main__":
    main(sys.argv[1:])
