"""Settings of stand-in models: a service's own, and which stand-in (DSD_STANDIN_*, --standin-*).

Invariant: no process with a stand-in has a name or serves a model under a name that does not say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.settings import DrafterSettings
from shared.data.profiles import read_profile
from shared.data.recording import read_recording
from shared.runtime.config import ServiceSettings

STANDIN = "stand-in"
MODEL_NAME = f"{STANDIN}-smollm2-135m"

Kind = Literal["paced", "replayed"]


class StandinSettings(ServiceSettings):
    """What both stand-ins can be told."""

    name: str = Field(STANDIN, description=f"Name of this instance; {STANDIN} must be part of it")
    model_name: str = Field(
        MODEL_NAME, description=f"Name under which the model is served; {STANDIN} must be part of it, the gateway's too"
    )
    standin_kind: Kind = Field(
        ..., description="paced: the real model, slowed down to a profile. replayed: a recording, without a model"
    )
    standin_profile: str = Field(..., description="JSON file with the times of the hardware stood in for")
    standin_recording: str = Field("", description="JSON lines with texts and acceptance; needed to replay")

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Self:
        for field, value in (("name", self.name), ("model_name", self.model_name)):
            if STANDIN not in value:
                raise ValueError(f"{field} {value!r} must say that this is a {STANDIN}")
        return self

    @model_validator(mode="after")
    def _files_can_be_read(self) -> Self:
        """Before anything is loaded that takes long."""
        if (self.standin_kind == "replayed") != bool(self.standin_recording):
            raise ValueError("standin_recording is needed to replay, and only there")
        try:
            read_profile(Path(self.standin_profile))
            if self.standin_recording:
                read_recording(Path(self.standin_recording))
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error
        return self


class StandinVerifierSettings(StandinSettings, VerifierSettings):
    """Settings of `python -m benchmarks.standins cloud_verifier`."""

    target: str = Field("", description="Folder of the target model; only to be paced")

    @model_validator(mode="after")
    def _model_is_for_pacing(self) -> Self:
        if (self.standin_kind == "paced") != bool(self.target):
            raise ValueError("target is needed for a paced stand-in, and only there")
        return self


class StandinDrafterSettings(StandinSettings, DrafterSettings):
    """Settings of `python -m benchmarks.standins edge_drafter`."""

    draft: str = Field("", description="Folder of the draft model; only to be paced")

    @model_validator(mode="after")
    def _model_is_for_pacing(self) -> Self:
        if (self.standin_kind == "paced") != bool(self.draft):
            raise ValueError("draft is needed for a paced stand-in, and only there")
        return self
