"""Where benchmarks find and leave their files, and how they write results.

Invariant: a result file is whole or absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "docs" / "reports" / "benchmarks"

Result = TypeVar("Result")


def write_result(path: Path, result: object) -> None:
    """Writes `result` as indented JSON; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    unfinished.replace(path)


def read_result(path: Path, kind: type[Result]) -> Result:
    """Raises ValueError, naming the file, if it does not hold a `kind`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a valid {kind.__name__}: {error}") from error
