"""Settings of services with stand-ins: those of the service, and DSD_STANDIN_* or --standin-*.

Invariant: the instance name and the model name of a process with a stand-in contain STANDIN.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from benchmarks.harness.standin import MODEL_NAME, STANDIN, StandinKind
from services.cloud_verifier.settings import VerifierSettings
from services.edge_drafter.settings import DrafterSettings
from shared.data.profiles import read_profile
from shared.data.recording import read_recording
from shared.runtime.config import ServiceSettings


class StandinSettings(ServiceSettings):
    """Settings of both stand-ins."""

    model_setting: ClassVar[str]  # the setting that names the folder of the model
    name: str = Field(STANDIN, description=f"Name of this instance; must contain {STANDIN}")
    model_name: str = Field(
        MODEL_NAME, description=f"Name of the served model, the same as the gateway's; must contain {STANDIN}"
    )
    standin_kind: StandinKind = Field(
        ..., description="paced: the real model, slowed down to a profile; replayed: a recording, without a model"
    )
    standin_profile: str = Field(..., description="JSON file with pass and step times")
    standin_recording: str = Field("", description="JSONL file with texts and acceptance; only for replayed")

    @model_validator(mode="after")
    def _names_contain_standin(self) -> Self:
        for field, value in (("name", self.name), ("model_name", self.model_name)):
            if STANDIN not in value:
                raise ValueError(f"{field} must contain {STANDIN}, got {value!r}")
        return self

    @model_validator(mode="after")
    def _files_are_readable(self) -> Self:
        """Checks the files before the service loads a model."""
        if (self.standin_kind == "replayed") != bool(self.standin_recording):
            raise ValueError("standin_recording is required for replayed stand-ins, and only for them")
        try:
            read_profile(Path(self.standin_profile))
            if self.standin_recording:
                read_recording(Path(self.standin_recording))
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error
        return self

    @model_validator(mode="after")
    def _model_is_for_paced(self) -> Self:
        if (self.standin_kind == "paced") != bool(getattr(self, self.model_setting)):
            raise ValueError(f"{self.model_setting} is required for paced stand-ins, and only for them")
        return self


class StandinVerifierSettings(StandinSettings, VerifierSettings):
    """Settings of `python -m benchmarks.standins cloud_verifier`."""

    model_setting = "target"
    target: str = Field("", description="Folder of the target model; only for paced")


class StandinDrafterSettings(StandinSettings, DrafterSettings):
    """Settings of `python -m benchmarks.standins edge_drafter`."""

    model_setting = "draft"
    draft: str = Field("", description="Folder of the draft model; only for paced")
