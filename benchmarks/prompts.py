"""Prompts and arrivals out of JSONL files: one object a line, the prompt in a field that is named or found.

Invariant: a file either gives a prompt for every line, or a ValueError that names the line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = Path(__file__).parents[1] / "tests" / "data" / "prompts.jsonl"
FIELDS = ("prompt", "question", "instruction", "text", "article", "input")  # looked for in this order


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace: when it comes, behind the first one, and how many tokens its answer had."""

    at_s: float
    num_tokens: int


def read_prompts(path: Path = OWN, field: str | None = None) -> list[str]:
    """All prompts of a file, in its order."""
    rows = _rows(path)
    if field is None:
        field = next((name for name in FIELDS if isinstance(rows[0].get(name), str)), None)
        if field is None:
            raise ValueError(f"{path}:1: no field of {', '.join(FIELDS)}; it has {', '.join(rows[0])}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{path}:{number}: no text in the field {field}")
    return [str(row[field]) for row in rows]


def read_arrivals(path: Path) -> list[Arrival]:
    """The fields arrival_ms and target_tokens of a trace, in the order of time."""
    arrivals = []
    for number, row in enumerate(_rows(path), start=1):
        at_ms, num_tokens = row.get("arrival_ms"), row.get("target_tokens")
        if not isinstance(at_ms, int | float) or not isinstance(num_tokens, int) or at_ms < 0 or num_tokens < 1:
            raise ValueError(f"{path}:{number}: arrival_ms and target_tokens are needed")
        arrivals.append(Arrival(at_ms / 1e3, num_tokens))
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, at least one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: an object is needed")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows
