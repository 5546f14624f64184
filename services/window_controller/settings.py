"""Settings of the window controller."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from awc.policy import DEFAULT_CHOICE, WindowChoice
from shared.config import ServiceSettings
from shared.messages import MAX_WINDOW


class ControllerSettings(ServiceSettings):
    """Window controller: decides how far each drafter may run ahead of each verifier."""

    name: str = Field(
        "controller", pattern=r"^[a-z0-9-]{1,64}$", description="Name of this instance, part of its subjects"
    )
    window_policy: Literal["static", "ladder", "confidence", "closed-form"] = Field(
        "ladder", description="How windows are chosen (docs/awc.md)"
    )
    window: int = Field(DEFAULT_CHOICE.window, ge=0, le=MAX_WINDOW, description="Unverified tokens a pair starts with")
    chunk: int = Field(
        DEFAULT_CHOICE.chunk, ge=1, le=MAX_WINDOW, description="Guesses sent together, at most the window"
    )
    free_run: bool = Field(
        DEFAULT_CHOICE.free_run, description="Whether verifiers go on alone while guesses are missing"
    )
    min_confidence: float = Field(
        DEFAULT_CHOICE.min_confidence,
        ge=0,
        le=1,
        description="A window ends early behind a guess less probable than this; the policy confidence starts with it",
    )
    announce_s: float = Field(2.0, gt=0, le=60, description="Seconds between two repeats of unchanged decisions")
    pair_expiry_s: float = Field(30.0, gt=0, description="Seconds without a report after which a pair is forgotten")
    max_pairs: int = Field(1 << 16, ge=1, description="Most drafter-verifier pairs at once")
    max_verifiers: int = Field(1024, ge=1, description="Most verifiers at once")
    max_waiting: int = Field(4096, ge=1, description="Most reports that may wait to be decided on")

    @model_validator(mode="after")
    def _chunk_fits(self) -> Self:
        """A chunk that was asked for must fit; the default gives way to a smaller window."""
        if "chunk" in self.model_fields_set:
            WindowChoice(self.window, self.chunk, self.free_run)
        return self

    @property
    def start(self) -> WindowChoice:
        """The choice that a pair starts with."""
        return WindowChoice(self.window, min(self.chunk, max(self.window, 1)), self.free_run, self.min_confidence)
