"""JSONL files with one object a line, and the prompts in them.

Only newlines end a line: JSON strings may contain other separators such as U+2028.

Invariant: a file gives a prompt for each line, or a ValueError that names the line.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

FIELDS = ("prompt", "question", "instruction", "text", "article", "input")  # detected in this order


def read_prompts(path: Path, field: str | None = None) -> list[str]:
    """The prompts of a file in order. field: the key of the prompt; None detects it."""
    rows = read_rows(path)
    if field is None:
        field = next((name for name in FIELDS if isinstance(rows[0].get(name), str)), None)
        if field is None:
            raise ValueError(f"{path}:1: one of the fields {', '.join(FIELDS)} is needed, found {', '.join(rows[0])}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{path}:{number}: the field {field} must hold text")
    return [str(row[field]) for row in rows]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, at least one. Raises ValueError naming the line."""
    rows = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: must be a JSON object")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows
