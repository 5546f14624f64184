"""How long hardware that is not here takes for a pass and a draft step, and the clock that waits for it.

Invariant: a wait ends not before its time, and late by what the system takes to wake a thread at most: it sleeps
nearly to the end and watches the clock for the rest.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

WATCH_S = 0.0002  # of the end of a wait; a sleep may be so late

Millis = Annotated[float, Meta(ge=0, le=60_000)]


class PassTimes(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a verify pass: the sum of these."""

    base_ms: Millis
    session_ms: Millis = 0.0
    token_ms: Millis = 0.0
    cached_ms: Millis = 0.0  # for each thousand tokens in the caches that it reads

    def pass_ms(self, num_sessions: int, num_tokens: int, num_cached: int) -> float:
        return (
            self.base_ms
            + self.session_ms * num_sessions
            + self.token_ms * num_tokens
            + self.cached_ms * num_cached / 1000
        )


class StepTimes(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a draft step: `step_ms` for one token, `prefill_ms` for each more."""

    step_ms: Millis
    prefill_ms: Millis = 0.0

    def feed_ms(self, num_tokens: int) -> float:
        return self.step_ms + self.prefill_ms * (num_tokens - 1)


class HardwareProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON file. `name` is shown wherever figures are; `origin` says where the times come from."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9.-]{1,40}\Z")]
    origin: str
    verifier: PassTimes
    drafter: StepTimes


def read_profile(path: Path) -> HardwareProfile:
    """Raises ValueError naming what is wrong, or OSError where the file can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=HardwareProfile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no hardware profile: {error}") from error


class Pace:
    """Makes work last as long as a profile says. For one thread, never the event loop's."""

    def __init__(self) -> None:
        self.num_overruns = 0

    def wait(self, started: float, needed_ms: float) -> bool:
        """Returns `needed_ms` behind `started` (time.perf_counter); False, at once, when that is over: an overrun."""
        due = started + needed_ms / 1e3
        left = due - time.perf_counter()
        if left < 0:
            self.num_overruns += 1
            return False
        if left > WATCH_S:
            time.sleep(left - WATCH_S)
        while time.perf_counter() < due:
            time.sleep(0)  # lets the event loop's thread run
        return True
