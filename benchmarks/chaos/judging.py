"""What a chaos run has shown: texts against undisturbed ones, failed requests and pauses by cause. Pure.

A pause is the time between two pieces of one choice, if it is longer than the longest such time without faults. It is
put down to the overlapping kind of fault that allows most. It is too long if it exceeds what the overlapping kinds
allow together, since one may follow the other, by more than the load itself makes: the longest time between two pieces
without faults, and the prefill where a fault makes the session compute its text again.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.chaos.faults import HANG_S
from benchmarks.chaos.records import Attempt, CauseFigures, Fault, RequestRecord, TextFigures
from benchmarks.harness.latency import OK
from shared.timing import HEARTBEAT_S, silence_s

Difference: TypeAlias = Literal["", "wrong", "lost", "doubled"]

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
REOPEN = ("kill-verifier", "hang-verifier", "term-verifier")  # the session computes its text again elsewhere
REFUSALS = ("connection refused", "503")


@dataclass(frozen=True, slots=True)
class Pause:
    """prefill_s: of the same question without faults."""

    gateway: str
    begin_s: float
    end_s: float
    prefill_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


# --- texts ------------------------------------------------------------------------------------------------------------


def difference(expected: str, got: str) -> Difference:
    """How a text differs: a part is missing, a part comes twice in a row, or anything else."""
    if got == expected:
        return ""
    same = _common_prefix(expected, got)
    surplus = len(got) - len(expected)
    if surplus < 0 and expected.endswith(got[same:]):
        return "lost"
    if surplus > 0 and got.endswith(expected[same:]) and _repeats(got, same, surplus):
        return "doubled"
    return "wrong"


def _common_prefix(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _repeats(text: str, end: int, length: int) -> bool:
    """Whether the `length` characters that begin somewhere before `end` come twice."""
    starts = range(max(0, end - length), end + 1)
    return any(text[i : i + length] == text[i + length : i + 2 * length] for i in starts)


def compare(records: Iterable[RequestRecord], expected: Mapping[int, Attempt]) -> tuple[TextFigures, list[str]]:
    """Counts differences, of answers and of what broken attempts had told. expected: answers by question."""
    counts: Counter[str] = Counter()
    found = []
    for record in records:
        right = expected[record.question]
        counts["requests"] += 1
        for attempt in record.attempts:
            for choice, text in enumerate(attempt.texts):
                kind = _difference_of(attempt, choice, text, right)
                counts[kind] += bool(kind)
                counts["choices"] += attempt.status == OK
                if kind:
                    found.append(
                        f"{kind}: request {record.number}, choice {choice}: {text!r}, not {right.texts[choice]!r}"
                    )
        answer = record.answer
        counts["tokens"] += answer.num_tokens
        if answer.status == OK and (answer.num_tokens, answer.finishes) != (right.num_tokens, right.finishes):
            counts["wrong"] += answer.texts == right.texts
            found.append(
                f"request {record.number}: {answer.num_tokens} tokens, {answer.finishes}; not {right.num_tokens}"
            )
    figures = TextFigures(
        num_requests=counts["requests"],
        num_choices=counts["choices"],
        num_tokens=counts["tokens"],
        wrong=counts["wrong"],
        lost=counts["lost"],
        doubled=counts["doubled"],
    )
    return figures, found


def _difference_of(attempt: Attempt, choice: int, text: str, right: Attempt) -> Difference:
    if attempt.status != OK and right.texts[choice].startswith(text):
        return ""  # it broke off
    return difference(right.texts[choice], text)


# --- failed requests --------------------------------------------------------------------------------------------------


def failures(
    records: Iterable[RequestRecord], faults: Sequence[Fault]
) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Broken attempts by cause, refused ones by reason, and those that had no right to break: their gateway was not
    killed."""
    failed: Counter[str] = Counter()
    retried: Counter[str] = Counter()
    unexcused = []
    for record in records:
        for attempt in record.attempts:
            if attempt.status in REFUSALS:
                retried[attempt.status] += 1
            elif attempt.status != OK:
                is_excused = any(
                    fault.kind == "kill-gateway"
                    and fault.target == attempt.gateway
                    and attempt.sent_s <= fault.begun_s <= attempt.ended_s
                    for fault in faults
                )
                failed["its gateway was killed" if is_excused else attempt.status] += 1
                if not is_excused:
                    unexcused.append(
                        f"request {record.number} at {attempt.gateway}, {attempt.sent_s:.1f} s: {attempt.status}"
                    )
        if record.answer.status != OK:
            unexcused.append(f"request {record.number} has no answer: {record.answer.status}")
    return dict(failed), dict(retried), unexcused


# --- pauses -----------------------------------------------------------------------------------------------------------


def gaps(attempt: Attempt) -> list[tuple[float, float]]:
    """Between two pieces of one choice of a stream, begin and end."""
    return [pair for arrivals in attempt.arrivals_s for pair in itertools.pairwise(arrivals)]


def first_piece_s(attempt: Attempt) -> float:
    """From the request to the last choice's first piece; 0 without a piece."""
    firsts = [arrivals[0] for arrivals in attempt.arrivals_s if arrivals]
    return max(firsts) - attempt.sent_s if firsts else 0.0


def longest_gap_s(attempts: Iterable[Attempt]) -> float:
    return max((end - begin for attempt in attempts for begin, end in gaps(attempt)), default=0.0)


def pauses(records: Iterable[RequestRecord], expected: Mapping[int, Attempt]) -> list[Pause]:
    """All times between pieces that are longer than the longest without faults."""
    usual_s = longest_gap_s(expected.values())
    return [
        Pause(attempt.gateway, begin, end, first_piece_s(expected[record.question]))
        for record in records
        for attempt in record.attempts
        for begin, end in gaps(attempt)
        if end - begin > usual_s
    ]


def allowed_s(kind: str, pause: Pause) -> float:
    """The longest pause that a fault of this kind may make, beyond the load's own."""
    return ALLOWED_S.get(kind, math.inf) + (pause.prefill_s if kind in REOPEN else 0.0)


def by_cause(faults: Sequence[Fault], found: Sequence[Pause], usual_s: float) -> tuple[list[CauseFigures], list[str]]:
    """Figures of each kind of fault, and the pauses that are too long. "none": no fault overlaps."""
    blamed: dict[str, list[Pause]] = {}
    alone: dict[str, float] = {}
    too_long: Counter[str] = Counter()
    complaints = []
    for pause in found:
        kinds = sorted({fault.kind for fault in faults if _concerns(fault, pause)})
        limits = {kind: allowed_s(kind, pause) for kind in kinds}
        kind = max(kinds, key=limits.__getitem__, default="none")
        blamed.setdefault(kind, []).append(pause)
        if len(kinds) < 2:
            alone[kind] = max(alone.get(kind, 0.0), pause.seconds)
        limit = usual_s + sum(limits.values())
        if kinds and pause.seconds > limit:
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


def _concerns(fault: Fault, pause: Pause) -> bool:
    """A gateway's fault concerns its own answers alone."""
    is_other_gateway = fault.kind.endswith("-gateway") and fault.target != pause.gateway
    return fault.overlaps(pause.begin_s, pause.end_s) and not is_other_gateway
