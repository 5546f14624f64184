"""Calls into metrics and into the journal of the request inspector, by a profile.

Invariant: a call counts once, where it comes from a service: what it calls in turn is part of it. `count_guesses` alone
calls as often as fates have changed, so its calls count by themselves.
"""

from __future__ import annotations

import pstats
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

Function: TypeAlias = tuple[str, int, str]  # file, line, name
METRICS = ("/prometheus_client/", "/metrics.py")
INSPECTOR = ("/gateway/inspector/",)
OURS = ("/services/", "/shared/")
NOT_CALLS = (
    *("__init__", "<module>", "begin_at_zero", "by_kind", "<lambda>", "set_function", "show_nodes"),  # at the start
    *("__enter__", "__exit__"),  # of what `time` and `track_inprogress` return
)


def calls_into(places: tuple[str, ...], profile: Path) -> Counter[str]:
    """The number of calls from services into files of these places, by the name of the function."""
    stats: dict[Function, Any] = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]  # not in the stubs
    found: Counter[str] = Counter()
    for function, (*_, callers) in stats.items():
        if _is_in(function, places) and function[2] not in NOT_CALLS:
            counted = (calls for caller, (_, calls, *_) in callers.items() if _counts(caller, places))
            found[function[2]] += sum(counted)
    return +found


def _counts(caller: Function, places: tuple[str, ...]) -> bool:
    return caller[2] == "count_guesses" or (_is_in(caller, OURS) and not _is_in(caller, places))


def _is_in(function: Function, places: tuple[str, ...]) -> bool:
    return any(place in function[0] for place in places)
