"""What a chaos run writes down: faults, requests, violations, and what is left at the end.

Times are seconds from the start of the run's part in which they happen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.harness.origin import Origin


@dataclass(slots=True)
class Fault:
    """A fault, from its beginning until nothing of it is left: its process is ready again, the disk is free."""

    kind: str
    target: str  # a process; empty: the machine, or all links
    begun_s: float
    ended_s: float | None = None  # None: it lasts

    def overlaps(self, begin_s: float, end_s: float) -> bool:
        return self.begun_s < end_s and (self.ended_s is None or self.ended_s > begin_s)


@dataclass(frozen=True, slots=True)
class Move:
    """A session goes to another verifier: the last message of the one that it leaves, Opened by the next one, and that
    one's first token, which takes the prefill of all that the session has."""

    gateway: str
    begun_s: float
    opened_s: float
    ended_s: float


@dataclass(slots=True)
class Attempt:
    """One request to one gateway, as its client saw it."""

    gateway: str
    sent_s: float
    ended_s: float = 0.0
    status: str = ""  # ok, refused (connection), an HTTP status with its code, or how it broke off
    texts: list[str] = field(default_factory=list)  # of the choices
    finishes: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    arrivals_s: list[list[float]] = field(default_factory=list)  # of each choice's pieces; empty: not streamed
    moves: list[Move] | None = None  # of all choices; None: its gateway was not there any more to tell


@dataclass(slots=True)
class RequestRecord:
    """A request with all of its attempts; the last one has the answer."""

    number: int
    question: int
    num_choices: int
    is_streamed: bool
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def answer(self) -> Attempt:
        return self.attempts[-1]


@dataclass(frozen=True, slots=True)
class CauseFigures:
    """Faults of one kind under load, and the pauses that they overlap, of any cause."""

    kind: str
    num_faults: int
    num_pauses: int
    longest_s: float


@dataclass(frozen=True, slots=True)
class SingleFigures:
    """Faults of one kind, one at a time; "none": what none of them overlaps. Times in seconds.

    longest_s: of the waits, between two pieces of a choice or for its first one, without the prefill behind a move.
    longest_opening_s: of the moves.
    """

    kind: str
    num_faults: int
    num_moves: int
    longest_s: float
    longest_opening_s: float
    allowed_s: float  # beyond the longest such wait without faults
    num_too_long: int


@dataclass(frozen=True, slots=True)
class SinglePart:
    """The part of a run with one fault at a time. usual: longest without faults, under the same load."""

    usual_gap_s: float
    usual_ttft_s: float
    texts: TextFigures
    failed: dict[str, int]
    retried: dict[str, int]
    kinds: list[SingleFigures]
    faults: list[Fault]


@dataclass(frozen=True, slots=True)
class TextFigures:
    """Answers compared with the undisturbed ones, by choice."""

    num_requests: int
    num_choices: int
    num_tokens: int
    wrong: int
    lost: int
    doubled: int


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is left when no request runs; all but memory must be 0."""

    sessions: float
    kv_tokens: float  # that are missing from the verifiers' free KV cache
    subscriptions: int  # at all NATS servers, beyond those at the start
    tasks: dict[str, int]  # of asyncio, of each process, beyond those at the start
    grown_mib: dict[str, float]  # memory of each process beyond that at the start, without a drafter's KV cache
    waited_s: float  # until sessions and KV cache were free


@dataclass(frozen=True, slots=True)
class MoveFigures:
    """Sessions that went to another verifier under faults."""

    num_moves: int
    longest_opening_s: float  # from the last message of one verifier to Opened of the next, the wait for KV cache in it
    longest_prefill_s: float  # from there to the first token
    num_unknown: int  # answers whose gateway could not be asked


@dataclass(frozen=True, slots=True)
class RollingFigures:
    """The restart of every service in turn."""

    num_restarts: int
    num_requests: int
    failed: dict[str, int]
    retried: dict[str, int]
    longest_pause_s: float


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """A whole run."""

    origin: Origin
    engine: str
    seed: int
    duration_s: float
    texts: TextFigures
    statuses: dict[str, int]  # of all attempts
    failed: dict[str, int]  # broken attempts, by cause
    retried: dict[str, int]  # attempts that a gateway refused, by reason: the client takes the other one
    undisturbed_pause_s: float  # longest one without faults
    undisturbed_ttft_s: float  # longest one without faults
    causes: list[CauseFigures]
    moves: MoveFigures
    faults: list[Fault]
    not_run: dict[str, str]  # kinds of faults, with the reason
    leftovers: Leftovers  # behind the faults under load
    single: SinglePart | None
    rolling: RollingFigures | None
    last_leftovers: Leftovers  # at the very end
    violations: list[str]
