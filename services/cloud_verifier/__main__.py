"""python -m services.cloud_verifier: one verifier until SIGTERM. With --engine vllm it takes vLLM's flags too."""

from __future__ import annotations

import sys

from services.cloud_verifier.settings import VerifierSettings, with_vllm_args
from shared.runtime.config import load

PROG = "python -m services.cloud_verifier"


def main() -> None:
    settings = load(VerifierSettings, with_vllm_args(sys.argv[1:]), PROG)

    # torch and vLLM take seconds to import. An invalid setting is reported before that.
    from services.cloud_verifier.loading import engine_loader
    from services.cloud_verifier.service import run

    run(settings, engine_loader(settings))


if __name__ == "__main__":
    main()
