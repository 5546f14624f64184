"""Errors of the simulator, as tables for documents and terminals. Pure.

Invariant: error = simulated / live - 1. Void cases are shown but do not count. Each error above its limit is listed
with the measurements that may explain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.origin import Origin
from benchmarks.validation.calibration import LARGE
from benchmarks.validation.case_run import CaseResult
from benchmarks.validation.cases import LIMITS, ErrorLimit

TITLES = {
    "tokens_per_s": "throughput, tokens/s",
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "acceptance_length": "acceptance length",
    "queue": "queue utilisation",
}
NOTABLE = 0.15  # errors above it are listed for figures without a limit
DIGITS = {"tokens_per_s": 1, "ttft_ms": 0, "tpot_ms": 1, "acceptance_length": 2, "queue": 4}


@dataclass(frozen=True, slots=True)
class LimitExcess:
    """An error above the limit of a single case."""

    result: CaseResult
    figure: str
    error: float


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of one figure over all cases that count. Without a limit it always holds."""

    figure: str
    median: float
    worst: float
    worst_case: str
    limit: ErrorLimit | None

    @property
    def holds(self) -> bool:
        return self.limit is None or (self.median <= self.limit.median and self.worst <= self.limit.worst)


def error_of(result: CaseResult, figure: str) -> float:
    """Relative to the live figure."""
    return float(getattr(result.simulated, figure) / getattr(result.live, figure) - 1)


def summaries(results: Sequence[CaseResult]) -> list[ErrorSummary]:
    """A summary of every figure; empty without cases that count."""
    found = []
    for figure in TITLES:
        counting = [result for result in results if not result.complaints and not _is_trivial(result, figure)]
        if not counting:
            continue
        errors = [abs(error_of(result, figure)) for result in counting]
        worst = max(errors)
        name = counting[errors.index(worst)].case.name
        found.append(ErrorSummary(figure, median(errors), worst, name, LIMITS.get(figure)))
    return found


def _is_trivial(result: CaseResult, figure: str) -> bool:
    """The throughput of an open loop equals the arrival rate, so it shows nothing."""
    return figure == "tokens_per_s" and not result.case.num_clients


def excesses(results: Sequence[CaseResult]) -> list[LimitExcess]:
    """All errors above their limits, in the order of the cases."""
    return [
        LimitExcess(result, figure, error)
        for result in results
        if not result.complaints
        for figure in TITLES
        if abs(error := error_of(result, figure)) > (LIMITS[figure].worst if figure in LIMITS else NOTABLE)
    ]


def describe(result: CaseResult, figure: str) -> str:
    """Live and simulated value, and the error."""
    digits = DIGITS[figure]
    live, simulated = getattr(result.live, figure), getattr(result.simulated, figure)
    return f"{live:.{digits}f} → {simulated:.{digits}f} ({error_of(result, figure):+.1%})"


def differences(result: CaseResult) -> list[str]:
    """How the judged run differed from the calibration."""
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
    """The report. `missing`: names of cases without a result."""
    over = [f"* `{each.result.case.name}`, {TITLES[each.figure]}: {_excess(each)}" for each in excesses(results)]
    parts = ["# DSD-Sim against the services", _about(origin)]
    parts += ["## Limits", _limits_table(results)]
    if missing:
        parts.append(f"Without a result: {', '.join(missing)}.")
    parts += ["Errors above their limits:", "\n".join(over)] if over else ["No error is above its limit."]
    parts += ["## Errors", _error_table(results)]
    parts += ["## Cases", _case_table(results)]
    parts += ["## Differences between judged runs and calibration", _difference_table(results)]
    parts += ["## Calibration", _calibration_table(results)]
    return "\n\n".join(parts) + "\n"


def _about(origin: Origin) -> str:
    return (
        f"`{origin.command}`, {origin.date}, {origin.machine}, Python {origin.python}. Each case runs the services as "
        "processes and is then simulated; figures are live → simulated (error). Times of passes, draft steps and "
        "messages are measured in the same running system before and after the judged requests, with other prompts of "
        "the same kinds, and guesses are recorded with those prompts. The way of a request to its first pass and back "
        "is measured as a whole, on one answer after another, and added to TTFT. The throughput of an open loop equals "
        "its arrival rate and does not count. Paced and replayed models are stand-ins: they show the behaviour of "
        "services and simulator, not the speed of a device."
    )


def _limits_table(results: Sequence[CaseResult]) -> str:
    rows = []
    for each in summaries(results):
        median_limit, worst_limit = (f"{each.limit.median:.0%}", f"{each.limit.worst:.0%}") if each.limit else ("", "")
        holds = "" if each.limit is None else "yes" if each.holds else "**no**"
        errors = (f"{each.median:.1%}", median_limit, f"{each.worst:.1%}", worst_limit)
        rows.append((TITLES[each.figure], *errors, each.worst_case, holds))
    return markdown_table(("figure", "median error", "limit", "worst", "limit", "case", "met"), rows)


def _excess(each: LimitExcess) -> str:
    return f"{describe(each.result, each.figure)}; {'; '.join(differences(each.result))}"


def _error_table(results: Sequence[CaseResult]) -> str:
    rows = []
    for result in results:
        void = f" **void**: {'; '.join(result.complaints[:3])}" if result.complaints else ""
        rows.append((f"{result.case.name}{void}", *(describe(result, figure) for figure in TITLES)))
    return markdown_table(("case", *TITLES.values()), rows)


def _case_table(results: Sequence[CaseResult]) -> str:
    rows = []
    for result in results:
        case, took_s = result.case, f"{result.took_s:.0f}"
        rows.append((case.name, case.fleet, case.windows, case.rtt_ms, case.load, case.num_requests, took_s))
    return markdown_table(("case", "models", "windows", "RTT added, ms", "load", "answers", "took, s"), rows)


def _difference_table(results: Sequence[CaseResult]) -> str:
    rows = [(result.case.name, "; ".join(differences(result))) for result in results]
    return markdown_table(("case", "judged run, relative to the calibration"), rows)


def _calibration_table(results: Sequence[CaseResult]) -> str:
    """The times outside the models, in milliseconds."""
    rows = []
    for result in results:
        found = result.calibration
        times = (found.pass_gap_ms, found.session_gap_ms, found.step_gap_ms, found.rtt_ms, found.request_ms)
        rows.append((result.case.name, *(f"{each:.2f}" for each in times)))
    names = ("case", "gap after a pass", "per session in it", "gap after a draft step", "round trip", "request")
    return markdown_table(names, rows)


# --- terminal ---------------------------------------------------------------------------------------------------------


def table(results: Sequence[CaseResult]) -> Table:
    """Errors, one row per case, and their medians and maxima."""
    shown = Table("case", *TITLES.values(), title="live → simulated (error)")
    for result in results:
        name = f"{result.case.name} (void)" if result.complaints else result.case.name
        shown.add_row(name, *(describe(result, figure) for figure in TITLES))
    found = summaries(results)
    if found:
        shown.add_section()
        shown.add_row("median error", *(f"{each.median:.1%}{_asked(each.limit, 'median')}" for each in found))
        shown.add_row("worst", *(f"{each.worst:.1%}{_asked(each.limit, 'worst')}" for each in found))
    return shown


def _asked(limit: ErrorLimit | None, name: str) -> str:
    return f" (≤ {getattr(limit, name):.0%})" if limit else ""
