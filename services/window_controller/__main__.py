"""python -m services.window_controller: one controller until SIGTERM."""

import sys

from services.window_controller.service import run
from services.window_controller.settings import ControllerSettings
from shared.runtime.config import load, read

PROG = "python -m services.window_controller"

if __name__ == "__main__":
    argv = sys.argv[1:]
    run(load(ControllerSettings, argv, PROG), lambda: read(ControllerSettings, argv, PROG))
