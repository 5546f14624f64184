"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A heading, and a line for each row."""
    lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *lines])
