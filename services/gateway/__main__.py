"""python -m services.gateway: one gateway until SIGTERM."""

import sys

from services.gateway.service import run
from services.gateway.settings import GatewaySettings
from shared.runtime.config import load

if __name__ == "__main__":
    run(load(GatewaySettings, sys.argv[1:], "python -m services.gateway"))
