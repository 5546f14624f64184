"""python -m services.cloud_verifier: one verifier until SIGTERM."""

import sys

from services.cloud_verifier.settings import VerifierSettings
from shared.runtime.config import load


def main() -> None:
    settings = load(VerifierSettings, sys.argv[1:], "python -m services.cloud_verifier")

    # torch takes seconds to import. An invalid setting is reported before that.
    from services.cloud_verifier.service import run
    from services.cloud_verifier.torch_engine.engine import load_engine

    run(settings, load_engine)


if __name__ == "__main__":
    main()
