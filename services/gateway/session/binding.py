"""Which peers serve a session in one term."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Binding:
    """The peers of one term, and when it began. drafter_id None: the verifier begins it alone."""

    term: int
    verifier_id: str
    drafter_id: str | None
    at: float
