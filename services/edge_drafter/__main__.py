"""python -m services.edge_drafter: one drafter until SIGTERM."""

import sys

from services.edge_drafter.service import run
from services.edge_drafter.settings import DrafterSettings
from shared.runtime.config import load

if __name__ == "__main__":
    run(load(DrafterSettings, sys.argv[1:], "python -m services.edge_drafter"))
