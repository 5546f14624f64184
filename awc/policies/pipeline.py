"""The pipeline window: what a drafter can have in flight, whatever its guesses are worth.

    window = (rtt + 2 pass) / time between two guesses of a session + 2 chunk, with free run

The bandwidth-delay product of TCP, in guesses. A baseline for `adaptive`, which also asks what guesses are worth.

Invariant: the window is 2 to MAX_WINDOW once a pair is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from awc.estimators.sliding import guesses_in_flight, is_measured
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport


@dataclass(frozen=True, slots=True)
class PipelinePolicy:
    """The window that the pipeline can use. Without state, the policy is its own pair control."""

    name: ClassVar[str] = "pipeline"
    start: WindowChoice

    def for_pair(self) -> PipelinePolicy:
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        if not is_measured(seen):
            return self.start
        chunk = max(self.start.chunk, 1)
        window = int(min(max(guesses_in_flight(seen, float(MAX_WINDOW), chunk), 2.0), MAX_WINDOW))
        return WindowChoice(window, min(chunk, window), free_run=True)
