"""Services with stand-in models: python -m benchmarks.standins cloud_verifier|edge_drafter --help.

Invariant: whatever these processes print, log or say on the bus names them a stand-in (standin_settings.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from benchmarks.standins.paced import PacedDraft, PacedTarget
from benchmarks.standins.replayed import ReplayedDraft, ReplayedTarget
from benchmarks.standins.settings import StandinDrafterSettings, StandinVerifierSettings
from services.cloud_verifier import service as cloud_verifier
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.engine import TorchEngine, load_model
from services.cloud_verifier.torch_engine.model import TargetModel
from services.edge_drafter import service as edge_drafter
from services.edge_drafter.model import DraftModel
from services.edge_drafter.settings import DrafterSettings
from shared.data.profiles import read_profile
from shared.data.recording import read_recording
from shared.runtime.config import load

PROG = "python -m benchmarks.standins"


def load_target(settings: VerifierSettings) -> TargetModel:
    """The stand-in that the settings name, in a target model's place."""
    assert isinstance(settings, StandinVerifierSettings)
    profile = read_profile(Path(settings.standin_profile))
    if settings.standin_kind == "paced":
        return cast(TargetModel, PacedTarget(load_model(settings), profile))
    return cast(TargetModel, ReplayedTarget(read_recording(Path(settings.standin_recording)), profile))


def load_engine(settings: VerifierSettings) -> TorchEngine:
    return TorchEngine(load_target(settings), settings.kv_tokens)


def load_draft(settings: DrafterSettings) -> DraftModel:
    """The stand-in that the settings name, in a draft model's place."""
    assert isinstance(settings, StandinDrafterSettings)
    profile = read_profile(Path(settings.standin_profile))
    if settings.standin_kind == "paced":
        return cast(DraftModel, PacedDraft(edge_drafter.load_model(settings), profile))
    return cast(DraftModel, ReplayedDraft(read_recording(Path(settings.standin_recording)), profile))


def main(argv: list[str]) -> None:
    service = argv[0] if argv else ""
    prog = f"{PROG} {service}"
    if service == "cloud_verifier":
        cloud_verifier.run(load(StandinVerifierSettings, argv[1:], prog), load_engine)
    elif service == "edge_drafter":
        edge_drafter.run(load(StandinDrafterSettings, argv[1:], prog), load_draft)
    else:
        print(f"{PROG}: name a service: cloud_verifier or edge_drafter (and --help for its settings)", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
