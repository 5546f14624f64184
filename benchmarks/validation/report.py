"""How far the simulator was off, as tables for documents and terminals. Pure.

Invariant: an error is simulated / live - 1; void cases are shown and count for nothing; what exceeds a limit is named,
with what was measured that may explain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from benchmarks.harness.origin import Origin
from benchmarks.validation.calibration import LARGE
from benchmarks.validation.case_run import CaseResult
from benchmarks.validation.cases import LIMITS, Limit

TITLES = {
    "tokens_per_s": "throughput, tokens/s",
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "acceptance_length": "acceptance length",
    "queue": "queue utilisation",
}
NOTABLE = 0.15  # an error above it is named where no limit is asked
DIGITS = {"tokens_per_s": 1, "ttft_ms": 0, "tpot_ms": 1, "acceptance_length": 2, "queue": 4}


@dataclass(frozen=True, slots=True)
class Excess:
    """An error above what a single case may have."""

    result: CaseResult
    figure: str
    error: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one figure's errors over all cases that count; limit None: nothing is asked."""

    figure: str
    median: float
    worst: float
    worst_case: str
    limit: Limit | None

    @property
    def holds(self) -> bool:
        return self.limit is None or (self.median <= self.limit.median and self.worst <= self.limit.worst)


def error_of(result: CaseResult, figure: str) -> float:
    """Relative to the live figure."""
    return float(getattr(result.simulated, figure) / getattr(result.live, figure) - 1)


def summaries(results: Sequence[CaseResult]) -> list[Summary]:
    """Of every figure; none without a case that counts."""
    found = []
    for figure in TITLES:
        counting = [result for result in results if not result.complaints and not _is_given(result, figure)]
        if not counting:
            continue
        errors = [abs(error_of(result, figure)) for result in counting]
        worst = max(errors)
        name = counting[errors.index(worst)].case.name
        found.append(Summary(figure, median(errors), worst, name, LIMITS.get(figure)))
    return found


def _is_given(result: CaseResult, figure: str) -> bool:
    """The throughput of an open loop is that of its arrivals, whatever answers take."""
    return figure == "tokens_per_s" and not result.case.num_clients


def excesses(results: Sequence[CaseResult]) -> list[Excess]:
    """In the order of the cases."""
    return [
        Excess(result, figure, error)
        for result in results
        if not result.complaints
        for figure in TITLES
        if abs(error := error_of(result, figure)) > (LIMITS[figure].worst if figure in LIMITS else NOTABLE)
    ]


def told(result: CaseResult, figure: str) -> str:
    """Live and simulated, and the error."""
    digits = DIGITS[figure]
    live, simulated = getattr(result.live, figure), getattr(result.simulated, figure)
    return f"{live:.{digits}f} → {simulated:.{digits}f} ({error_of(result, figure):+.1%})"


def differences(result: CaseResult) -> list[str]:
    """What was otherwise in the judged run than what the simulator was told."""
    drift, calibration = result.drift, result.calibration
    large = "" if drift.large_passes is None else f", those over {LARGE} tokens {drift.large_passes:+.1%}"
    found = [f"passes took {drift.passes:+.1%}{large}"]
    if drift.steps is not None:
        found.append(f"draft steps {drift.steps:+.1%}")
    if drift.rtt_ms is not None:
        found.append(f"round trip {drift.rtt_ms:.1f} ms, calibrated {calibration.rtt_ms:.1f}")
    if result.live.acceptance is not None and result.simulated.acceptance is not None:
        found.append(f"acceptance {result.live.acceptance:.3f}, recorded {result.simulated.acceptance:.3f}")
    return found


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(results: Sequence[CaseResult], missing: Sequence[str], origin: Origin) -> str:
    """The whole report. `missing`: cases that came to nothing."""
    over = [f"* `{each.result.case.name}`, {TITLES[each.figure]}: {_excess(each)}" for each in excesses(results)]
    parts = ["# DSD-Sim against the services", _about(origin)]
    parts += ["## What must hold", _limits_table(results)]
    if missing:
        parts.append(f"Without figures: {', '.join(missing)}.")
    parts += ["Further off than one may be:", "\n".join(over)] if over else ["No case is further off than one may be."]
    parts += ["## Errors", _error_table(results)]
    parts += ["## Cases", _case_table(results)]
    parts += ["## What the judged runs did otherwise", _difference_table(results)]
    parts += ["## What was calibrated", _calibration_table(results)]
    return "\n\n".join(parts) + "\n"


def _about(origin: Origin) -> str:
    return (
        f"`{origin.command}`, {origin.date}, {origin.machine}, Python {origin.python}. Each case runs the services as "
        "processes, then is simulated; figures are live → simulated (error). Times of passes, steps and messages were "
        "measured in the same running system before and behind the judged requests, with other prompts of the same "
        "kinds; guesses were recorded with those prompts. A request's way to its first pass and back is measured as a "
        "whole, on answers one after the other, and added to TTFT. The throughput of an open loop is that of its "
        "arrivals and counts for nothing. Paced and replayed models are stand-ins: they show the services' behaviour "
        "and the simulator's, not a device's speed."
    )


def _limits_table(results: Sequence[CaseResult]) -> str:
    rows = ["| figure | median error | may be | worst | may be | where | holds |", _rule(7)]
    for each in summaries(results):
        medium, most = (f"{each.limit.median:.0%}", f"{each.limit.worst:.0%}") if each.limit else ("", "")
        holds = "" if each.limit is None else "yes" if each.holds else "**no**"
        cells = (TITLES[each.figure], f"{each.median:.1%}", medium, f"{each.worst:.1%}", most, each.worst_case, holds)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _excess(each: Excess) -> str:
    return f"{told(each.result, each.figure)}; {'; '.join(differences(each.result))}"


def _error_table(results: Sequence[CaseResult]) -> str:
    rows = [f"| case | {' | '.join(TITLES.values())} |", _rule(1 + len(TITLES))]
    for result in results:
        void = f" **void**: {'; '.join(result.complaints[:3])}" if result.complaints else ""
        rows.append(f"| {result.case.name}{void} | {' | '.join(told(result, figure) for figure in TITLES)} |")
    return "\n".join(rows)


def _case_table(results: Sequence[CaseResult]) -> str:
    rows = ["| case | models | windows | RTT added, ms | load | answers | took, s |", _rule(7)]
    for result in results:
        case = result.case
        cells = (case.name, case.fleet, case.windows, str(case.rtt_ms), case.load)
        rows.append(f"| {' | '.join((*cells, str(case.num_requests), f'{result.took_s:.0f}'))} |")
    return "\n".join(rows)


def _difference_table(results: Sequence[CaseResult]) -> str:
    rows = ["| case | against what the simulator was told |", _rule(2)]
    return "\n".join([*rows, *(f"| {result.case.name} | {'; '.join(differences(result))} |" for result in results)])


def _calibration_table(results: Sequence[CaseResult]) -> str:
    """The gaps and ways beside the models, in milliseconds."""
    rows = ["| case | behind a pass | and each session in it | behind a draft step | round trip | request |", _rule(6)]
    for result in results:
        found = result.calibration
        times = (found.pass_gap_ms, found.session_gap_ms, found.step_gap_ms, found.rtt_ms, found.request_ms)
        rows.append(f"| {result.case.name} | {' | '.join(f'{each:.2f}' for each in times)} |")
    return "\n".join(rows)


def _rule(num_columns: int) -> str:
    return f"|{' --- |' * num_columns}"


# --- terminal ---------------------------------------------------------------------------------------------------------


def table(results: Sequence[CaseResult]) -> Table:
    """Errors, one row a case, and their medians and worst."""
    shown = Table("case", *(TITLES[figure] for figure in TITLES), title="live → simulated (error)")
    for result in results:
        name = f"{result.case.name} (void)" if result.complaints else result.case.name
        shown.add_row(name, *(told(result, figure) for figure in TITLES))
    found = summaries(results)
    if found:
        shown.add_section()
        shown.add_row("median error", *(f"{each.median:.1%}{_asked(each.limit, 'median')}" for each in found))
        shown.add_row("worst", *(f"{each.worst:.1%}{_asked(each.limit, 'worst')}" for each in found))
    return shown


def _asked(limit: Limit | None, name: str) -> str:
    return f" (≤ {getattr(limit, name):.0%})" if limit else ""
