"""python -m services.cloud_verifier: one verifier until SIGTERM. With --engine vllm it takes vLLM's flags too."""

from __future__ import annotations

import sys

from services.cloud_verifier.settings import VerifierSettings, with_vllm_args
from shared.runtime.config import load

PROG = "python -m services.cloud_verifier"


def main() -> None:
    settings = load(VerifierSettings, with_vllm_args(sys.argv[1:]), PROG)

    # torch and vLLM take seconds to import. An invalid setting is reported before that.
    from services.cloud_verifier.service import run

    if settings.engine == "vllm":
        from services.cloud_verifier.vllm_engine import environment

        environment.prepare(settings)
        try:
            from services.cloud_verifier.vllm_engine.engine import load_engine as load_vllm
            from services.cloud_verifier.vllm_engine.flags import engine_args
        except ModuleNotFoundError as error:
            sys.exit(f"{PROG}: --engine vllm needs the package {error.name} (docs/large-models.md)")
        args = engine_args(settings)
        run(settings, lambda settings: load_vllm(settings, args))
    else:
        from services.cloud_verifier.torch_engine.engine import load_engine

        run(settings, load_engine)


if __name__ == "__main__":
    main()
