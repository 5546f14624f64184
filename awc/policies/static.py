"""The static policy: one choice for every pair. With a chunk as large as the window and no free run it is the
stop-and-wait baseline of arXiv 2511.21669.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from awc.policy import WindowChoice
from shared.protocol.messages import PairReport


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """Always `start`. Without state, the policy is its own pair control."""

    name: ClassVar[str] = "static"
    start: WindowChoice

    def for_pair(self) -> StaticPolicy:
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        return self.start
