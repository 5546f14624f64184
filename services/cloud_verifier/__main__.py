"""python -m services.cloud_verifier: one verifier until SIGTERM."""

import sys

from services.cloud_verifier.service import run
from services.cloud_verifier.settings import VerifierSettings
from shared.config import load

if __name__ == "__main__":
    run(load(VerifierSettings, sys.argv[1:], "python -m services.cloud_verifier"))
