"""Settings of the window controller, and which of them may change while it runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from awc.policy import DEFAULT_CHOICE, WindowChoice, WindowPolicy
from awc.registry import POLICIES
from shared.protocol.messages import MAX_WINDOW
from shared.runtime.config import ServiceSettings, SettingsFile

STEERING = {"window_policy", "window", "chunk", "free_run", "min_confidence"}  # what a policy is made of


class ControllerSettings(ServiceSettings):
    """Window controller: decides how far each drafter may run ahead of each verifier."""

    name: str = Field(
        "controller", pattern=r"^[a-z0-9-]{1,64}$", description="Name of this instance, part of its subjects"
    )
    config_file: str = Field(
        "", description="TOML file of settings, which flags and variables override; read again on SIGHUP (docs/awc.md)"
    )
    window_policy: Literal[
        "static", "ladder", "confidence", "closed-form", "goodput", "nightjar", "delay-ucb", "wc-dnn", "adaptive"
    ] = Field("adaptive", description="How windows are chosen (docs/awc.md)")
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
    announce_s: float = Field(5.0, gt=0, le=60, description="Seconds between two repeats of unchanged decisions")
    pair_expiry_s: float = Field(30.0, gt=0, description="Seconds without a report after which a pair is forgotten")
    max_pairs: int = Field(1 << 16, ge=1, description="Most drafter-verifier pairs at once")
    max_verifiers: int = Field(1024, ge=1, description="Most verifiers at once")
    max_waiting: int = Field(4096, ge=1, description="Most reports that may wait to be decided on")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SettingsFile(settings_cls)

    @model_validator(mode="after")
    def _makes_a_policy(self) -> Self:
        """A chunk that was asked for must fit; the default gives way to a smaller window."""
        if "chunk" in self.model_fields_set:
            WindowChoice(self.window, self.chunk, self.free_run)
        try:
            self.make_policy()
        except OSError as error:  # what a policy was trained to is a file
            raise ValueError(f"the policy {self.window_policy} can't be made: {error}") from error
        return self

    @property
    def start(self) -> WindowChoice:
        """The choice that a pair starts with."""
        return WindowChoice(self.window, min(self.chunk, max(self.window, 1)), self.free_run, self.min_confidence)

    @property
    def steering(self) -> dict[str, Any]:
        """The policy's name and its start."""
        return {"window_policy": self.window_policy, **asdict(self.start)}

    def make_policy(self) -> WindowPolicy:
        return POLICIES[self.window_policy](self.start)

    def steered_by(self, other: ControllerSettings) -> ControllerSettings:
        """These settings with the policy and the start of others."""
        return self.model_copy(update=other.model_dump(include=STEERING))

    def differing(self, other: ControllerSettings) -> list[str]:
        """Names of the settings that others have another value for."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]
