"""python -m services.cloud_verifier: one verifier until SIGTERM."""

import sys

from services.cloud_verifier.settings import VerifierSettings
from shared.runtime.config import load

if __name__ == "__main__":
    settings = load(VerifierSettings, sys.argv[1:], "python -m services.cloud_verifier")

    from services.cloud_verifier.service import run  # only now: torch takes seconds to load, and a refusal needs none

    run(settings)
