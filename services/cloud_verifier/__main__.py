"""python -m services.cloud_verifier: one verifier until SIGTERM. With --engine vllm it takes vLLM's flags too."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from services.cloud_verifier.settings import VerifierSettings, with_vllm_args
from shared.runtime.config import load

if TYPE_CHECKING:
    from services.cloud_verifier.service import LoadEngine

PROG = "python -m services.cloud_verifier"


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
        sys.exit(f"{PROG}: --engine vllm needs the package {error.name} (docs/large-models.md)")
    args = engine_args(settings)
    return lambda given: load_vllm(given, args)


def main() -> None:
    settings = load(VerifierSettings, with_vllm_args(sys.argv[1:]), PROG)

    # torch and vLLM take seconds to import. An invalid setting is reported before that.
    from services.cloud_verifier.service import run

    run(settings, engine_loader(settings))


if __name__ == "__main__":
    main()
