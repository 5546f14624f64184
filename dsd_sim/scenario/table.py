"""Base class and number types of the tables in the simulator's TOML files.

Invariant: unknown keys, values of another type, and numbers out of range are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
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
