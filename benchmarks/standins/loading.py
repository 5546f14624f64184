"""Loads the stand-in that settings name, in place of a service's own model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from benchmarks.standins.paced import PacedDraft, PacedTarget
from benchmarks.standins.replayed import ReplayedDraft, ReplayedTarget
from benchmarks.standins.settings import StandinDrafterSettings, StandinVerifierSettings
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.engine import TorchEngine, load_model
from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter import service as edge_drafter
from services.edge_drafter.model import DraftModel
from services.edge_drafter.settings import DrafterSettings
from shared.data.profiles import read_profile
from shared.data.recording import read_recording


def load_target(settings: VerifierSettings) -> TargetModel:
    assert isinstance(settings, StandinVerifierSettings)
    profile = read_profile(Path(settings.standin_profile))
    if settings.standin_kind == "paced":
        return cast(TargetModel, PacedTarget(load_model(settings), profile))
    return cast(TargetModel, ReplayedTarget(read_recording(Path(settings.standin_recording)), profile))


def load_engine(settings: VerifierSettings) -> TorchEngine:
    return TorchEngine(load_target(settings), settings.kv_tokens)


def load_draft(settings: DrafterSettings) -> DraftModel:
    assert isinstance(settings, StandinDrafterSettings)
    profile = read_profile(Path(settings.standin_profile))
    if settings.standin_kind == "paced":
        return cast(DraftModel, PacedDraft(edge_drafter.load_model(settings), profile))
    return cast(DraftModel, ReplayedDraft(read_recording(Path(settings.standin_recording)), profile))
