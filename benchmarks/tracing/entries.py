"""What tracing costs a process, from a profile of it: calls of tracing's functions, and the time inside them.

Invariant: time inside a call counts once, however deep tracing's functions call each other or OpenTelemetry's. The
profiler's own time counts too, so the figures are upper bounds.
"""

from __future__ import annotations

import pstats
from dataclasses import dataclass
from pathlib import Path

FILES = ("/shared/runtime/tracing.py", "/shared/runtime/otel.py", "/traces.py")
ONCE = ("<module>", "tracing_of", "register", "close")


@dataclass(frozen=True, slots=True)
class Entries:
    """Calls of tracing's functions from elsewhere, the seconds inside them, and the spans that they ended."""

    num_calls: int
    seconds: float
    num_spans: int


def entries(path: Path) -> Entries:
    """Reads a profile that cProfile has written. The start and the end of a process count for nothing. Raises
    ValueError for an incomplete file."""
    num_calls, seconds, num_spans = 0, 0.0, 0
    try:
        stats = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]
    except EOFError as error:
        raise ValueError(f"{path.name} is empty: the process was killed before it had written it") from error
    for (file, _, name), (_, num, _, _, callers) in stats.items():
        if not file.endswith(FILES) or name in ONCE:
            continue
        num_spans += num if (file.endswith(FILES[1]) and name == "end") else 0
        for (calling, _, _), (_, num_entries, _, inside) in callers.items():
            if not calling.endswith(FILES):
                num_calls += num_entries
                seconds += inside
    return Entries(num_calls, seconds, num_spans)
