"""Lists of names: whole names, and beginnings of names that end in "*".

They name instances (`drafters` of an API key). Ids begin with the name and a dot, so the ids of a name, and of all
names with a beginning, lie side by side in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

AFTER_ANY = "\x7f"  # sorts behind every character of an id


def is_listed(name: str, names: Sequence[str] | None) -> bool:
    """Whether a list holds the name; None holds all."""
    return names is None or any(f"{name}.".startswith(_beginning(each)) for each in names)


def id_range(name: str) -> tuple[str, str]:
    """The first id that an entry of a list may stand for, and one behind the last."""
    beginning = _beginning(name)
    return beginning, beginning + AFTER_ANY


def _beginning(name: str) -> str:
    return name[:-1] if name.endswith("*") else f"{name}."
