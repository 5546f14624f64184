"""What one session did on its way, for metrics and logs."""

from __future__ import annotations

from dataclasses import dataclass

from shared.protocol.messages import FailureCode, Tally


@dataclass(slots=True)
class Incidents:
    """Disturbances of a session so far."""

    failovers: int = 0  # changes of verifier after the first Opened
    drafter_changes: int = 0
    conflicts: int = 0  # verdicts that contradict tokens already sent on


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """Counts of a session that is over; `failure_code` None: the answer is complete, or its client has left."""

    num_prompt_tokens: int
    num_output_tokens: int
    tally: Tally
    incidents: Incidents
    failure_code: FailureCode | None
