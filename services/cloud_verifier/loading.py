"""Chooses the engine that settings name, and imports what it needs: torch or vLLM, which take seconds."""

from __future__ import annotations

import sys

from services.cloud_verifier.service import LoadEngine
from services.cloud_verifier.settings import VerifierSettings


def engine_loader(settings: VerifierSettings) -> LoadEngine:
    """Loads what the settings' engine imports, and returns what loads the engine."""
    if settings.engine == "torch":
        from services.cloud_verifier.torch_engine.engine import load_engine

        return load_engine
    from services.cloud_verifier.vllm_engine import environment

    environment.prepare(settings)
    try:
        from services.cloud_verifier.vllm_engine.engine import load_engine as load_vllm
        from services.cloud_verifier.vllm_engine.flags import engine_args
    except ModuleNotFoundError as error:
        sys.exit(f"--engine vllm needs the package {error.name} (docs/large-models.md)")
    args = engine_args(settings)
    return lambda given: load_vllm(given, args)
