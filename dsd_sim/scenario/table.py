"""Base class and number types of the tables in the simulator's TOML files.

Invariant: unknown keys, values of another type, and numbers out of range are refused. The ranges keep virtual time
finite and exact: no event is so short or so late that the clock stands still.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LEAST, LARGEST = 1e-6, 1e9
LEAST_MS, LONGEST_MS = 0.001, 60_000.0  # of a pass or a draft step, at least; of anything on a link, at most
LONGEST_RUN_S = 30 * 86_400.0  # of virtual time
MOST_FACTOR = 1000.0
LEAST_MBIT = 0.001


def _check_bandwidth(value: float) -> float:
    if 0 < value < LEAST_MBIT:
        raise ValueError(f"must be 0 or at least {LEAST_MBIT}, got {value:g}")
    return value


Positive: TypeAlias = Annotated[float, Field(ge=LEAST, le=LARGEST, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Delay: TypeAlias = Annotated[float, Field(ge=0, le=LONGEST_MS, allow_inf_nan=False)]  # milliseconds
Factor: TypeAlias = Annotated[float, Field(ge=1 / MOST_FACTOR, le=MOST_FACTOR, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Bandwidth: TypeAlias = Annotated[NotNegative, AfterValidator(_check_bandwidth)]  # megabits per second
MOST = 10_000_000
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]


class BadScenario(ValueError):
    """A file can't be run; the message names the file and the key."""


@contextmanager
def naming_key(key: str) -> Iterator[None]:
    """Turns an error of a file that `key` refers to into a BadScenario."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadScenario(f"{key}: {error}") from error


class Table(BaseModel):
    """A TOML table; the fields of a subclass are its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
