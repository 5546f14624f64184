"""Names of stand-ins for models, in plans, logs and on the bus.

Invariant: every name of a process or model that is a stand-in contains STANDIN.
"""

from __future__ import annotations

from typing import Literal

STANDIN = "stand-in"
MODEL_NAME = f"{STANDIN}-smollm2-135m"
OVERRUN = f"{STANDIN} overrun"  # log event: a pass or step took longer than the profile allows

StandinKind = Literal["paced", "replayed"]
