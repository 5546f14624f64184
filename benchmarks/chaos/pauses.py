"""How long answers waited in a chaos run, by cause. Pure.

Under load, with a fault every two seconds, times have no limit: processes that restart take the cores of those that
answer. With one fault at a time a wait, between two pieces of a choice or before its first one, may last

    usual + allowed + prefill

usual: the longest such wait without faults. allowed: ALLOWED_S of a fault, for waits that begin within that time of it;
STARTING_S for later ones, and for those before a first piece, while the process that it ended starts again;
OTHERWISE_S for all others. prefill: from Opened at another verifier to the first token there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chaos.faults import HANG_S, SIGNALS
from benchmarks.chaos.records import Attempt, CauseFigures, Fault, Move, MoveFigures, RequestRecord, SingleFigures
from benchmarks.harness.latency import OK
from shared.timing import HEARTBEAT_S, silence_s

OTHERWISE_S = 0.2  # a session that runs free does not wait for its drafter, and for nobody else
STARTING_S = 0.5  # nobody waits for a process that starts, but it takes one of few cores for seconds
REOPENED_S = 2.0  # a dead verifier's session works elsewhere
SILENT_S = max(HANG_S, silence_s(HEARTBEAT_S) + REOPENED_S)
ALLOWED_S: Mapping[str, float] = {
    "kill-verifier": REOPENED_S,
    "hang-verifier": SILENT_S,
    "hang-gateway": HANG_S,
    "kill-nats": REOPENED_S,
    "hang-nats": SILENT_S,
}
NO_FAULT = "none"


@dataclass(frozen=True, slots=True)
class Wait:
    """Of a choice: between two pieces, or before its first one. usual_s: longest such time without faults."""

    gateway: str
    begin_s: float
    end_s: float
    usual_s: float
    is_first: bool = False

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


def gaps(attempt: Attempt) -> list[tuple[float, float]]:
    """Between two pieces of one choice of a stream, begin and end."""
    return [pair for arrivals in attempt.arrivals_s for pair in itertools.pairwise(arrivals)]


def first_piece_s(attempt: Attempt) -> float:
    """From the request to the last choice's first piece; 0 without a piece."""
    firsts = [arrivals[0] for arrivals in attempt.arrivals_s if arrivals]
    return max(firsts) - attempt.sent_s if firsts else 0.0


def longest_gap_s(attempts: Iterable[Attempt]) -> float:
    return max((end - begin for attempt in attempts for begin, end in gaps(attempt)), default=0.0)


def attempts_of(records: Iterable[RequestRecord]) -> list[Attempt]:
    return [attempt for record in records for attempt in record.attempts]


# --- under load -------------------------------------------------------------------------------------------------------


def by_move(records: Sequence[RequestRecord]) -> MoveFigures:
    found = [move for attempt in attempts_of(records) for move in attempt.moves or ()]
    return MoveFigures(
        num_moves=len(found),
        longest_opening_s=max((move.opened_s - move.begun_s for move in found), default=0.0),
        longest_prefill_s=max((move.ended_s - move.opened_s for move in found), default=0.0),
        num_unknown=sum(record.answer.status == OK and record.answer.moves is None for record in records),
    )


def by_cause(faults: Sequence[Fault], records: Iterable[RequestRecord], usual_s: float) -> list[CauseFigures]:
    """Of each kind of fault, the pauses that it overlaps. A pause is longer than usual_s."""
    found = [
        Wait(attempt.gateway, begin, end, usual_s)
        for attempt in attempts_of(records)
        for begin, end in gaps(attempt)
        if end - begin > usual_s
    ]
    seconds: dict[str, list[float]] = {fault.kind: [] for fault in faults}
    for wait in found:
        kinds = {fault.kind for fault in faults if _concerns(fault, wait)} or {NO_FAULT}
        for kind in kinds:
            seconds.setdefault(kind, []).append(wait.seconds)
    numbers = Counter(fault.kind for fault in faults)
    return [
        CauseFigures(kind, numbers[kind], len(each), max(each, default=0.0)) for kind, each in sorted(seconds.items())
    ]


def _concerns(fault: Fault, wait: Wait) -> bool:
    """A gateway's fault concerns its own answers alone."""
    is_other_gateway = fault.kind.endswith("-gateway") and fault.target != wait.gateway
    return fault.overlaps(wait.begin_s, wait.end_s) and not is_other_gateway


# --- one fault at a time ----------------------------------------------------------------------------------------------


def by_single(
    faults: Sequence[Fault], records: Sequence[RequestRecord], usual_gap_s: float, usual_ttft_s: float
) -> tuple[list[SingleFigures], list[str]]:
    """Figures of each kind of fault, and what took too long. No two faults overlap."""
    longest: dict[str, float] = {fault.kind: 0.0 for fault in faults}
    openings: dict[str, list[float]] = {}
    too_long: Counter[str] = Counter()
    complaints = []
    for attempt in attempts_of(records):
        moved = attempt.moves or []
        for wait in _waits(attempt, usual_gap_s, usual_ttft_s):
            kind, limit = _limit(faults, wait)
            seconds = wait.seconds - sum(_overlap(wait, move) for move in _apart(moved))
            longest[kind] = max(longest.get(kind, 0.0), seconds)
            if seconds > limit:
                too_long[kind] += 1
                complaints.append(
                    f"{kind}: a wait of {seconds:.2f} s at {wait.begin_s:.1f} s in an answer of {attempt.gateway}, "
                    f"{limit:.2f} s allowed"
                )
        for move in moved:
            wait = Wait(attempt.gateway, move.begun_s, move.opened_s, usual_gap_s)
            openings.setdefault(_limit(faults, wait)[0], []).append(wait.seconds)
    numbers = Counter(fault.kind for fault in faults)
    figures = [
        SingleFigures(
            kind=kind,
            num_faults=numbers[kind],
            num_moves=len(openings.get(kind, ())),
            longest_s=seconds,
            longest_opening_s=max(openings.get(kind, ()), default=0.0),
            allowed_s=ALLOWED_S.get(kind, OTHERWISE_S),
            num_too_long=too_long[kind],
        )
        for kind, seconds in sorted(longest.items())
    ]
    return figures, complaints


def _waits(attempt: Attempt, usual_gap_s: float, usual_ttft_s: float) -> Iterator[Wait]:
    for arrivals in attempt.arrivals_s:
        if arrivals:
            yield Wait(attempt.gateway, attempt.sent_s, arrivals[0], usual_ttft_s, is_first=True)
    for begin, end in gaps(attempt):
        yield Wait(attempt.gateway, begin, end, usual_gap_s)


def _limit(faults: Sequence[Fault], wait: Wait) -> tuple[str, float]:
    """The kind of the fault that overlaps, and the longest time that is allowed."""
    overlapping = [fault for fault in faults if _concerns(fault, wait)]
    if not overlapping:
        return NO_FAULT, wait.usual_s + OTHERWISE_S
    return overlapping[-1].kind, wait.usual_s + max(_allowed_s(fault, wait) for fault in overlapping)


def _allowed_s(fault: Fault, wait: Wait) -> float:
    at_once = ALLOWED_S.get(fault.kind, OTHERWISE_S)
    later = STARTING_S if fault.kind.partition("-")[0] in SIGNALS else OTHERWISE_S
    if wait.begin_s > fault.begun_s + at_once:
        return later
    return max(at_once, later) if wait.is_first else at_once


def _overlap(wait: Wait, move: Move) -> float:
    return max(0.0, min(move.ended_s, wait.end_s) - max(move.opened_s, wait.begin_s))


def _apart(moves: Iterable[Move]) -> Iterator[Move]:
    """Prefills that do not overlap: choices of one answer move together."""
    end = float("-inf")
    for move in sorted(moves, key=lambda each: each.opened_s):
        begin = max(move.opened_s, end)
        if move.ended_s > begin:
            yield Move(move.gateway, move.begun_s, begin, move.ended_s)
            end = move.ended_s
