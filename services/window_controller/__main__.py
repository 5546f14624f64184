"""python -m services.window_controller"""

import sys

from services.window_controller.service import run
from services.window_controller.settings import ControllerSettings
from shared.config import load

run(load(ControllerSettings, sys.argv[1:], "python -m services.window_controller"))
