"""JSONL files, one object a line, and the prompts in them, in the field that is named or found.

Lines end where the file has a newline, not at the separators that a JSON string may hold as they are (U+2028).

Invariant: a file either gives a prompt for every line, or a ValueError that names the line.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

FIELDS = ("prompt", "question", "instruction", "text", "article", "input")  # looked for in this order


def read_prompts(path: Path, field: str | None = None) -> list[str]:
    """All prompts of a file, in its order."""
    rows = read_rows(path)
    if field is None:
        field = next((name for name in FIELDS if isinstance(rows[0].get(name), str)), None)
        if field is None:
            raise ValueError(f"{path}:1: no field of {', '.join(FIELDS)}; it has {', '.join(rows[0])}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ValueError(f"{path}:{number}: no text in the field {field}")
    return [str(row[field]) for row in rows]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, at least one."""
    rows = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: an object is needed")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows
