"""How long the gateway waits for its peers. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PollTiming:
    """When a silent verifier is polled, and when unanswered Polls mean that it is gone."""

    min_silence_s: float = 0.5
    max_silence_s: float = 5.0
    num_gaps: float = 4.0  # a verifier is silent after so many usual gaps between verdicts, within the two bounds
    answer_s: float = 1.0  # then an unanswered Poll is repeated
    max_polls: int = 3


@dataclass(frozen=True, slots=True)
class SessionTiming:
    """When a session repeats a message, looks for other peers, or gives up."""

    poll: PollTiming = PollTiming()
    open_timeout_s: float = 1.0  # then an unanswered Open is repeated
    num_opens: int = 3  # unanswered Opens after which a verifier is given up
    absent_pause_s: float = 0.1  # before the next message to an absent verifier
    avoid_s: float = 1.0  # before a verifier that failed the session is tried again
    avoid_drafter_s: float = 5.0  # the same for a drafter
    adopt_s: float = 0.5  # between two searches of a session without a drafter
    speculate_retry_s: float = 2.0  # then Speculate is repeated if no draft has arrived; doubles each time
    num_speculates: int = 3  # without a draft, after which a drafter is given up
    max_idle_opens: int = 8  # terms in a row without a token, after which the session fails
    session_timeout_s: float = 180.0  # without a working verifier, after which the session fails
