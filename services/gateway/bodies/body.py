"""What all models of request bodies are."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_NAME_CHARACTERS = 256


def blame(field: str, message: str) -> PydanticCustomError:
    """A validation error that concerns the whole body, reported for one of its fields."""
    return PydanticCustomError("blame", "{message}", {"field": field, "message": message})


class Body(BaseModel):
    """Strict: no unknown fields, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    unoffered: ClassVar[frozenset[str]] = frozenset()  # fields that are refused by name, but for neutral values


ShortText = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
