"""What the tables of the simulator's TOML files have in common.

Invariant: a key that is not described is refused, and so is a number that means nothing.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
MOST = 10_000_000
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]


class BadScenario(ValueError):
    """A file can't be run; the message names it and the key at fault."""


class Part(BaseModel):
    """A table of the file; keys that are not described are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
