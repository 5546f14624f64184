"""What a hostile run found, as its file holds it.

Invariant: whatever must not happen is in `violations`; none in a good run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio


@dataclass(frozen=True, slots=True)
class Slowdown:
    """TPOT of honest clients beside hostile requests / TPOT without them. rate: hostile requests answered a second."""

    ratio: Ratio
    rate: float
    quiet_ms: float  # median
    num_rounds: int


@dataclass(slots=True)
class HttpFigures:
    """Hostile bodies and connections. num_systematic: of the bodies, those with one wrong field or wrong as a whole;
    the others are random changes. num_warm_up: bodies sent before. num_equal: honest answers beside them."""

    num_systematic: int
    num_warm_up: int
    requests: dict[str, int]  # by class of answer
    connections: dict[str, int]  # by statuses and end
    longest_silence_s: float  # of a connection that the gateway kept
    num_equal: int
    slowdown: Slowdown | None = None


@dataclass(frozen=True, slots=True)
class RoleFigures:
    """The messages of one role, and the honest answers meanwhile. num_sessions: placed with the role, or opened for it
    where it is a gateway. num_left_out: honest answers of such sessions that differ or failed."""

    role: str
    num_packets: int
    seconds: float
    types: dict[str, int]
    denied: int
    num_sessions: int
    num_equal: int
    num_left_out: int
    disturbed: list[str]


@dataclass(slots=True)
class HostileResult:
    """A run."""

    origin: Origin
    seed: int
    http: HttpFigures | None = None
    roles: list[RoleFigures] = field(default_factory=list)
    growth: dict[str, dict[str, float]] = field(default_factory=dict)  # MiB, by attack and process
    violations: list[str] = field(default_factory=list)
