"""Lists of names: whole names, and beginnings of names that end in "*".

They name instances (`drafters` of an API key). Ids begin with the name and a dot, so the ids of a name, and of all
names with a beginning, lie side by side in their order.

Invariant: for the name of a drafter that belongs to an API key, only that name itself stands: no beginning of names
does, and it is not among all names.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.protocol.subjects import is_owned

AFTER_ANY = "\x7f"  # sorts behind every character of an id


def is_listed(name: str, names: Sequence[str] | None) -> bool:
    """Whether a list holds the name; None holds all that no key owns."""
    if is_owned(name):
        return name in (names or ())
    return names is None or any(f"{name}.".startswith(_beginning(each)) for each in names)


def id_range(name: str) -> tuple[str, str]:
    """The first id that an entry of a list may stand for, and one behind the last."""
    beginning = _beginning(name)
    return beginning, beginning + AFTER_ANY


def _beginning(name: str) -> str:
    return name[:-1] if name.endswith("*") else f"{name}."
