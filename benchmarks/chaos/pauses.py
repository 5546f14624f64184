"""How long faults made answers wait: pauses and moves of a chaos run, judged by cause. Pure.

A move is late if Opened comes later after the last word of the old verifier than the overlapping faults allow together,
since one may follow the other, and the longest time between two pieces without faults.

A pause is the time between two pieces of one choice, if it is longer than the longest such time without faults. It is
put down to the overlapping kind of fault that allows most. It is too long if it exceeds what the overlapping kinds
allow together by more than the load itself makes: that longest time, and the time in which moved sessions were computed
again, since they share the verifiers with all others.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chaos.faults import HANG_S
from benchmarks.chaos.records import Attempt, CauseFigures, Fault, Move, MoveFigures, RequestRecord
from benchmarks.harness.latency import OK
from shared.timing import HEARTBEAT_S, silence_s

DRAFTER_S = 0.2  # a session that runs free does not wait for its drafter
REOPENED_S = 2.0  # a dead verifier's session works elsewhere
ALLOWED_S: Mapping[str, float] = {  # beyond the load's own pauses
    "kill-verifier": REOPENED_S,
    "hang-verifier": max(HANG_S, silence_s(HEARTBEAT_S) + REOPENED_S),
    "term-verifier": DRAFTER_S,
    "kill-drafter": DRAFTER_S,
    "hang-drafter": DRAFTER_S,
    "term-drafter": DRAFTER_S,
    "kill-controller": DRAFTER_S,
    "hang-controller": DRAFTER_S,
    "term-controller": DRAFTER_S,
    "hang-gateway": HANG_S,
    "term-gateway": DRAFTER_S,
    "partition": DRAFTER_S,
    "loss": DRAFTER_S,
    "full-disk": DRAFTER_S,
    "clock": DRAFTER_S,
}


@dataclass(frozen=True, slots=True)
class Pause:
    gateway: str
    begin_s: float
    end_s: float

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


def pauses(records: Iterable[RequestRecord], usual_s: float) -> list[Pause]:
    """All times between pieces that are longer than usual_s, the longest without faults."""
    return [
        Pause(attempt.gateway, begin, end)
        for record in records
        for attempt in record.attempts
        for begin, end in gaps(attempt)
        if end - begin > usual_s
    ]


def moves_of(records: Iterable[RequestRecord]) -> list[Move]:
    return [move for record in records for attempt in record.attempts for move in attempt.moves or ()]


def by_move(records: Sequence[RequestRecord], faults: Sequence[Fault], usual_s: float) -> tuple[MoveFigures, list[str]]:
    """Figures of all moves, and those that are late."""
    found = moves_of(records)
    complaints = []
    for move in found:
        limit = usual_s + sum(_limits(faults, Pause(move.gateway, move.begun_s, move.opened_s)).values())
        seconds = move.opened_s - move.begun_s
        if seconds > limit:
            complaints.append(
                f"a session was opened elsewhere after {seconds:.2f} s at {move.begun_s:.1f} s, {limit:.2f} s allowed"
            )
    figures = MoveFigures(
        num_moves=len(found),
        longest_opening_s=max((move.opened_s - move.begun_s for move in found), default=0.0),
        longest_prefill_s=max((move.ended_s - move.opened_s for move in found), default=0.0),
        num_late=len(complaints),
        num_untold=sum(record.answer.status == OK and record.answer.moves is None for record in records),
    )
    return figures, complaints


def by_cause(
    faults: Sequence[Fault], found: Sequence[Pause], moved: Sequence[Move], usual_s: float
) -> tuple[list[CauseFigures], list[str]]:
    """Figures of each kind of fault, and the pauses that are too long. "none": no fault overlaps."""
    blamed: dict[str, list[Pause]] = {}
    alone: dict[str, float] = {}
    too_long: Counter[str] = Counter()
    complaints = []
    prefills = _union((move.opened_s, move.ended_s) for move in moved)
    for pause in found:
        limits = _limits(faults, pause)
        kind = max(sorted(limits), key=limits.__getitem__, default="none")
        blamed.setdefault(kind, []).append(pause)
        if len(limits) < 2:
            alone[kind] = max(alone.get(kind, 0.0), pause.seconds)
        prefill_s = sum(max(0.0, min(end, pause.end_s) - max(begin, pause.begin_s)) for begin, end in prefills)
        limit = usual_s + prefill_s + sum(limits.values())
        if limits and pause.seconds > limit:
            too_long[kind] += 1
            complaints.append(
                f"{kind}: a pause of {pause.seconds:.2f} s at {pause.begin_s:.1f} s, {limit:.2f} s allowed"
            )
    numbers = Counter(fault.kind for fault in faults)
    figures = [
        CauseFigures(
            kind=kind,
            num_faults=numbers[kind],
            num_pauses=len(blamed.get(kind, [])),
            longest_s=max((pause.seconds for pause in blamed.get(kind, [])), default=0.0),
            longest_alone_s=alone.get(kind, 0.0),
            allowed_s=ALLOWED_S.get(kind),
            num_too_long=too_long[kind],
        )
        for kind in sorted({*numbers, *blamed})
    ]
    return figures, complaints


def _limits(faults: Sequence[Fault], pause: Pause) -> dict[str, float]:
    """The longest pause, beyond the load's own, that each overlapping kind of fault may make."""
    kinds = {fault.kind for fault in faults if _concerns(fault, pause)}
    return {kind: ALLOWED_S.get(kind, math.inf) for kind in kinds}


def _concerns(fault: Fault, pause: Pause) -> bool:
    """A gateway's fault concerns its own answers alone."""
    is_other_gateway = fault.kind.endswith("-gateway") and fault.target != pause.gateway
    return fault.overlaps(pause.begin_s, pause.end_s) and not is_other_gateway


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that cover the same times and do not overlap."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined
