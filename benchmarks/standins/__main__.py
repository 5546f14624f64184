"""Services with stand-in models: python -m benchmarks.standins cloud_verifier|edge_drafter --help.

Invariant: everything that these processes print, log or send names them a stand-in (settings.py).
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.standins.loading import load_draft, load_engine
from benchmarks.standins.settings import StandinDrafterSettings, StandinVerifierSettings
from services.cloud_verifier import service as cloud_verifier
from services.edge_drafter import service as edge_drafter
from shared.runtime.config import load

PROG = "python -m benchmarks.standins"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(PROG, description="Runs a service with a stand-in for its model.")
    parser.add_argument("service", choices=("cloud_verifier", "edge_drafter"))
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="settings of the service; --help lists them")
    arguments = parser.parse_args(argv)
    prog = f"{PROG} {arguments.service}"
    if arguments.service == "cloud_verifier":
        cloud_verifier.run(load(StandinVerifierSettings, arguments.settings, prog), load_engine)
    else:
        edge_drafter.run(load(StandinDrafterSettings, arguments.settings, prog), load_draft)


if __name__ == "__main__":
    main(sys.argv[1:])
