"""Settings of the window controller, and those that a reload applies."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from awc.policies.adaptive import AdaptivePolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice, WindowPolicy
from awc.registry import POLICIES, policy_kind
from shared.protocol.messages import MAX_WINDOW
from shared.runtime.config import ServiceSettings, SettingsFile
from shared.timing import PAIR_EXPIRY_S

STEERING = {"window_policy", "window", "chunk", "free_run", "min_confidence"}  # a reload applies these


class ControllerSettings(ServiceSettings):
    """Window controller: decides how far each drafter may run ahead of each verifier."""

    name: str = Field(
        "controller", pattern=r"^[a-z0-9-]{1,64}$", description="Name of this instance, part of its subjects"
    )
    config_file: str = Field(
        "", description="TOML file of settings; flags and variables override it; SIGHUP reloads it (docs/awc.md)"
    )
    window_policy: str = Field(
        AdaptivePolicy.name,
        description=f"How windows are chosen: {', '.join(POLICIES)} (docs/awc.md) or module:Class (docs/own-policy.md)",
    )
    window: int = Field(
        DEFAULT_CHOICE.window, ge=0, le=MAX_WINDOW, description="First window of a pair, in tokens; 0: target-only"
    )
    chunk: int = Field(
        DEFAULT_CHOICE.chunk, ge=1, le=MAX_WINDOW, description="Guesses sent together, at most the window"
    )
    free_run: bool = Field(
        DEFAULT_CHOICE.free_run, description="Whether verifiers decode alone while they have no guesses"
    )
    min_confidence: float = Field(
        DEFAULT_CHOICE.min_confidence,
        ge=0,
        le=1,
        description="A guess below this probability ends its window; the policy confidence starts with it",
    )
    announce_s: float = Field(5.0, gt=0, le=60, description="Seconds between repeats of an unchanged decision")
    pair_expiry_s: float = Field(
        PAIR_EXPIRY_S, gt=0, description="Seconds without a report after which a pair is removed"
    )
    instances_per_name: int = Field(
        1, ge=1, description="Drafters or verifiers that may share a name; a newer one replaces the oldest"
    )
    max_pairs: int = Field(1 << 16, ge=1, description="Most drafter-verifier pairs")
    max_verifiers: int = Field(1024, ge=1, description="Most live verifiers")
    max_waiting: int = Field(4096, ge=1, description="Most queued reports; further ones are dropped")

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

    @field_validator("window_policy")
    @classmethod
    def _is_a_policy(cls, name: str) -> str:
        policy_kind(name)
        return name

    @model_validator(mode="after")
    def _makes_a_policy(self) -> Self:
        """A given chunk must fit the window; the default chunk shrinks with it."""
        if "chunk" in self.model_fields_set:
            WindowChoice(self.window, self.chunk, self.free_run)
        try:
            self.make_policy()
        except OSError as error:  # weights are files
            raise ValueError(f"the policy {self.window_policy} can't be made: {error}") from error
        return self

    @property
    def start(self) -> WindowChoice:
        """The choice that every pair starts with."""
        return WindowChoice(self.window, min(self.chunk, max(self.window, 1)), self.free_run, self.min_confidence)

    @property
    def steering(self) -> dict[str, Any]:
        """Name and start of the policy."""
        return {"window_policy": self.window_policy, **asdict(self.start)}

    def make_policy(self) -> WindowPolicy:
        return policy_kind(self.window_policy)(self.start)

    def steered_by(self, other: ControllerSettings) -> ControllerSettings:
        """These settings with policy and start of others."""
        return self.model_copy(update=other.model_dump(include=STEERING))

    def differing(self, other: ControllerSettings) -> list[str]:
        """Names of the settings whose values differ."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]
