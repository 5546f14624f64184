"""The gateway's patience with its peers, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PollTiming:
    """When silence is worth a Poll, and when unanswered Polls mean that the verifier is gone."""

    min_silence_s: float = 0.5
    max_silence_s: float = 5.0
    num_gaps: float = 4.0  # silence is this many usual gaps between verdicts
    answer_s: float = 1.0  # a Poll is repeated after that
    max_polls: int = 3


@dataclass(frozen=True, slots=True)
class SessionTiming:
    """When a session repeats what it asked, looks for other peers, or gives up."""

    poll: PollTiming = PollTiming()
    open_timeout_s: float = 1.0  # an Open is repeated after that
    num_opens: int = 3  # unanswered Opens until a verifier is given up
    absent_pause_s: float = 0.1  # before trying again where nobody listened
    avoid_s: float = 1.0  # a verifier that failed this session is not tried again before
    avoid_drafter_s: float = 5.0
    adopt_s: float = 0.5  # between two looks for a drafter by a session without one
    speculate_retry_s: float = 2.0  # without a sign of the drafter in the verdicts Speculate is repeated, doubling
    num_speculates: int = 3
    max_idle_opens: int = 8  # Opens in a row that brought no token
    session_timeout_s: float = 30.0  # without any verifier
