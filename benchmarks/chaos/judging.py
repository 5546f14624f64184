"""What a chaos run has shown: texts against undisturbed ones, and failed requests by cause. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from benchmarks.chaos.records import Attempt, Fault, RequestRecord, TextFigures
from benchmarks.harness.latency import OK

Difference: TypeAlias = Literal["", "wrong", "lost", "doubled"]

REFUSALS = ("connection refused", "503")
KILLED_S = 0.2  # from the beginning of the fault until the process has ended


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
    """Broken attempts by cause, refused ones by reason, and those that had no right to: an answer may break off when
    its gateway is killed, a gateway may refuse while a fault of its own lasts."""
    failed: Counter[str] = Counter()
    retried: Counter[str] = Counter()
    unexcused = []
    for record in records:
        for attempt in record.attempts:
            if attempt.status == OK:
                continue
            if is_refusal := attempt.status.startswith(REFUSALS):
                retried[attempt.status] += 1
                is_excused = any(_refuses(fault, attempt) for fault in faults)
            else:
                is_excused = any(_breaks(fault, attempt) for fault in faults)
                failed["its gateway was killed" if is_excused else attempt.status] += 1
            if not is_excused:
                what = "refused without a cause, " if is_refusal else ""
                unexcused.append(
                    f"request {record.number} at {attempt.gateway}, {attempt.sent_s:.1f} s: {what}{attempt.status}"
                )
        if record.answer.status != OK:
            unexcused.append(f"request {record.number} has no answer: {record.answer.status}")
    return dict(failed), dict(retried), unexcused


def _breaks(fault: Fault, attempt: Attempt) -> bool:
    is_its_own = fault.kind == "kill-gateway" and fault.target == attempt.gateway
    return is_its_own and attempt.sent_s <= fault.begun_s + KILLED_S and fault.begun_s <= attempt.ended_s


def _refuses(fault: Fault, attempt: Attempt) -> bool:
    is_its_own = fault.kind.endswith("-gateway") and fault.target == attempt.gateway
    return is_its_own and fault.overlaps(attempt.sent_s, attempt.ended_s)
