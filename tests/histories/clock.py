"""Virtual time for the services: while it is installed, their modules read this clock and write no logs.

Invariant: the monotonic clock of each process began at a time of its own. There is no wall clock: code that reads one
ends the history with an AttributeError, so no step of a wall clock can change what services do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from services.cloud_verifier import loop as verify_loop
from services.cloud_verifier import service as verifier_service
from services.cloud_verifier import sessions as verifier_sessions
from services.cloud_verifier.engine import OutOfMemory
from services.edge_drafter import service as drafter_service
from services.gateway.session import manager as gateway_sessions
from tests.histories.violation import Injected, Violation

TIMED = (verify_loop, verifier_service, drafter_service, gateway_sessions)
LOGGING = (*TIMED, verifier_sessions)


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.began_ms = 0.0  # of the process that acts

    def monotonic(self) -> float:
        return (self.now_ms - self.began_ms) / 1e3

    perf_counter = monotonic


class Silence:
    """A logger. An exception that no schedule asked for ends the history."""

    def debug(self, event: str, **about: object) -> None: ...

    info = warning = debug

    def error(self, event: str, **about: object) -> None:
        self.exception(event)

    def exception(self, event: str, **about: object) -> None:
        error = sys.exception()
        if not isinstance(error, Injected | OutOfMemory):
            raise Violation(f"{event}: {error!r}") from error


@contextmanager
def installed(clock: Clock) -> Iterator[None]:
    """Makes services read this clock."""
    saved: list[tuple[ModuleType, str, object]] = [(module, "time", module.time) for module in TIMED]  # type: ignore[attr-defined]
    saved += [(module, "log", module.log) for module in LOGGING]  # type: ignore[attr-defined]
    for module, name, _ in saved:
        setattr(module, name, clock if name == "time" else Silence())
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
