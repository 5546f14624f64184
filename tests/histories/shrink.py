"""Shrinks a schedule whose history breaks a rule: leaves out what the violation does not need.

Greedy: each part is left out once in turn, and stays out if the history still breaks a rule, whichever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from tests.histories.history import play
from tests.histories.schedule import Fault, Request, Schedule

MAX_SPARED = 400  # messages that are tried one by one
Part = TypeVar("Part")


def shrink(schedule: Schedule) -> Schedule:
    """The smallest schedule found that still breaks a rule. The one that is given must break one."""
    while True:
        smaller = next((each for each in smaller_ones(schedule) if play(each).violation), None)
        if smaller is None:
            return spare(schedule)
        schedule = smaller


def smaller_ones(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules with one part less, or with a smaller one."""
    for index in range(len(schedule.faults)):
        yield replace(schedule, faults=_without(schedule.faults, index))
    for index in range(len(schedule.requests)):
        yield replace(schedule, requests=_without(schedule.requests, index))
    for index in range(len(schedule.drafters)):
        yield replace(schedule, drafters=_without(schedule.drafters, index))
    for index in range(1, len(schedule.verifiers)):
        yield replace(schedule, verifiers=_without(schedule.verifiers, index))
    for index, request in enumerate(schedule.requests):
        for plainer in _plainer(request):
            yield replace(schedule, requests=_with(schedule.requests, index, plainer))
    for index, fault in enumerate(schedule.faults):
        for shorter in _shorter(fault):
            yield replace(schedule, faults=_with(schedule.faults, index, shorter))


def spare(schedule: Schedule) -> Schedule:
    """The same with as few messages touched by faults of links as may be."""
    for number in range(1, min(MAX_SPARED, play(schedule).num_hits) + 1):
        spared = replace(schedule, spared=schedule.spared | {number})
        if play(spared).violation:
            schedule = spared
    return schedule


def _plainer(request: Request) -> Iterator[Request]:
    if request.max_tokens > 1:
        yield replace(request, max_tokens=request.max_tokens // 2)
    if len(request.prompt) > 1:
        yield replace(request, prompt=request.prompt[: len(request.prompt) // 2])
    for change in ({"num_top": None}, {"scope": None}, {"read_ms": 0.0}, {"stays_ms": float("inf")}):
        plainer = replace(request, **change)  # type: ignore[arg-type]
        if plainer != request:
            yield plainer


def _shorter(fault: Fault) -> Iterator[Fault]:
    if fault.for_ms > 20:
        yield replace(fault, for_ms=fault.for_ms / 2)
        yield replace(fault, at_ms=fault.at_ms + fault.for_ms / 2, for_ms=fault.for_ms / 2)


def _without(parts: tuple[Part, ...], index: int) -> tuple[Part, ...]:
    return parts[:index] + parts[index + 1 :]


def _with(parts: tuple[Part, ...], index: int, part: Part) -> tuple[Part, ...]:
    return (*parts[:index], part, *parts[index + 1 :])
