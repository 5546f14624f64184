"""python -m services.cloud_verifier: one verifier until SIGTERM.

Under torchrun rank 0 is the verifier. The other ranks compute their shards of the model and end with rank 0.
"""

import sys

from services.cloud_verifier.settings import VerifierSettings
from shared.runtime import logs
from shared.runtime.config import load


def main() -> None:
    settings = load(VerifierSettings, sys.argv[1:], "python -m services.cloud_verifier")

    # torch takes seconds to import. An invalid setting is reported before that.
    from services.cloud_verifier.service import run
    from services.cloud_verifier.torch_engine.engine import follow_model, load_engine
    from services.cloud_verifier.torch_engine.ranks import Ranks

    ranks = Ranks.here()
    if ranks is not None and ranks.rank:
        logs.set_up(settings, "verifier", f"{settings.name} rank {ranks.rank}")
        follow_model(settings)
        return
    try:
        run(settings, load_engine)
    finally:
        if ranks is not None:
            ranks.end()


if __name__ == "__main__":
    main()
