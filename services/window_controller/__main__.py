"""python -m services.window_controller: one controller until SIGTERM."""

import sys

from services.window_controller.service import run
from services.window_controller.settings import ControllerSettings
from shared.config import load

if __name__ == "__main__":
    run(load(ControllerSettings, sys.argv[1:], "python -m services.window_controller"))
