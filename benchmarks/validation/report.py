"""Errors of predictions, as tables for documents and terminals. Pure.

Invariant: error = simulated / live - 1. Void cases are shown but do not count. Each error above its limit is listed
with what the live run did otherwise than the profile says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from awc_training.intervals import Interval, mean, median
from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.origin import Origin
from benchmarks.load.processor_time import MAX_FOREIGN_SHARE
from benchmarks.validation.cases import LIMITS, ROUNDS, ErrorLimit
from benchmarks.validation.prediction import Prediction, error_of

TITLES = {
    "tpot_ms": "TPOT, ms",
    "tokens_per_s": "throughput, tokens/s",
    "ttft_ms": "TTFT, ms",
    "speed_up": "speed-up over target-only",
    "acceptance_length": "acceptance length",
    "guesses": "guesses per token",
    "queue": "queue utilisation",
}
DIGITS = {"tokens_per_s": 1, "ttft_ms": 0, "tpot_ms": 1, "queue": 4}  # others: 2


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of one figure over all cases that count. Without a limit it always holds. bias: the mean signed error."""

    figure: str
    median: Interval
    worst: float
    worst_case: str
    bias: Interval
    limit: ErrorLimit | None

    @property
    def holds(self) -> bool:
        limit = self.limit
        if limit is None:
            return True
        pairs = ((self.median.value, limit.median), (self.worst, limit.worst), (abs(self.bias.value), limit.bias))
        return all(most is None or error <= most for error, most in pairs)


def summaries(found: Sequence[Prediction], *, beside: bool = False) -> list[ErrorSummary]:
    """A summary of every figure, of the cases or of the target-only answers beside them; empty if no case counts."""
    made = []
    for figure in TITLES:
        counting = [each for each in found if not each.result.complaints]
        known = {each.result.case.name: _known(each, figure, beside=beside) for each in counting}
        errors = {name: error for name, each in known.items() if (error := error_of(each)) is not None}
        if errors:
            sizes = {name: abs(error) for name, error in errors.items()}
            worst = max(sizes, key=sizes.__getitem__)
            middle, bias = median(list(sizes.values())), mean(list(errors.values()))
            made.append(ErrorSummary(figure, middle, sizes[worst], worst, bias, LIMITS.get(figure)))
    return made


def _known(each: Prediction, figure: str, *, beside: bool) -> tuple[float, float] | None:
    return each.beside_figures(figure) if beside else each.figures(figure)


def describe(each: Prediction, figure: str, *, beside: bool = False) -> str:
    """Live and simulated value, and the error; empty if the figure is not predicted."""
    known = _known(each, figure, beside=beside)
    error = error_of(known)
    if known is None or error is None:
        return ""
    digits = DIGITS.get(figure, 2)
    return f"{known[0]:.{digits}f} → {known[1]:.{digits}f} ({error:+.1%})"


def differences(each: Prediction) -> list[str]:
    """How the live run differed from its profile."""
    drift, live, simulated = each.result.drift, each.result.live, each.simulated
    found = [f"passes {drift.passes:+.1%}"]
    alone = each.beside_figures("tpot_ms")
    if alone is not None:
        found.append(f"TPOT of the target-only answers beside it {alone[0] / alone[1] - 1:+.1%}")
    if drift.steps is not None:
        found.append(f"draft steps {drift.steps:+.1%}")
    if drift.trip_ms is not None:
        found.append(f"round trip {drift.trip_ms:.1f} ms beyond the link")
    if live.acceptance is not None and simulated.acceptance is not None:
        found.append(f"acceptance {live.acceptance:.3f}, recorded {simulated.acceptance:.3f}")
    return found


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Prediction], missing: Sequence[str], origin: Origin) -> str:
    """The report. `missing`: names of cases without a result."""
    over = [
        f"* `{each.result.case.name}`, {TITLES[figure]}: {describe(each, figure)}; {'; '.join(differences(each))}"
        for each in found
        if not each.result.complaints
        for figure, limit in LIMITS.items()
        if limit.worst is not None and abs(error_of(each.figures(figure)) or 0.0) > limit.worst
    ]
    parts = ["# DSD-Sim against the services", _about(origin)]
    parts += ["## Prediction error", _limits_table(found)]
    if missing:
        parts.append(f"Without a result: {', '.join(missing)}.")
    parts += ["Errors above the limit of a single case:", "\n".join(over)] if over else []
    parts += ["## Error of the target-only answers beside the cases", _beside_summary(found)]
    parts += ["## Cases", _case_table(found), "## Errors", _error_table(found)]
    parts += ["## Target-only answers beside each case", _beside_table(found)]
    parts += ["## Live runs against their profiles", _difference_table(found)]
    return "\n\n".join(parts) + "\n"


def _about(origin: Origin) -> str:
    return (
        f"`{origin.command}`, {origin.date}, {origin.machine}, Python {origin.python}. Each case ran on the "
        f"services as processes, in {ROUNDS} rounds, as what a machine's cores do to each other changes within "
        "minutes. A round started the processes of a system, calibrated it, and ran a share of every case, with "
        "the next prompts. Calibration has other loads and windows than the cases, with real models other prompts, "
        "and adds nothing to the link. Each round of a case was simulated from the profile of its pair, which "
        "comes from the calibrations of all rounds; figures of a case are means over its rounds. Just before and "
        "just after a round of a case a part of its requests was asked without drafts; speed-ups are over these "
        "answers, of which an open loop has fewer at once than its case. What ran while something else used more "
        f"than {MAX_FOREIGN_SHARE:.0%} of a core is void, and runs again up to twice; a case with a void round does "
        "not count. Parentheses after medians and biases: 95 % bootstrap intervals over cases; cases share a "
        "machine and profiles. Figures are live → simulated (error). The throughput of an open loop equals its "
        "arrival rate and does not count. The models of `fleet` are stand-ins: they show the behaviour of services "
        "and simulator, not the speed of a device."
    )


def _limits_table(found: Sequence[Prediction]) -> str:
    rows = []
    for each in summaries(found):
        limit = each.limit
        limits = (limit.median, limit.worst, limit.bias) if limit else (None, None, None)
        cells = [_interval(each.median), f"{each.worst:.1%}", _interval(each.bias, "+")]
        asked = ["" if most is None else f"{'±' if index == 2 else ''}{most:.0%}" for index, most in enumerate(limits)]
        holds = "" if limit is None else "yes" if each.holds else "**no**"
        pairs = [part for pair in zip(cells, asked, strict=True) for part in pair]
        rows.append((TITLES[each.figure], *pairs, each.worst_case, holds))
    return markdown_table(("figure", "median", "limit", "worst", "limit", "bias", "limit", "worst case", "met"), rows)


def _beside_summary(found: Sequence[Prediction]) -> str:
    rows = [
        (
            TITLES[each.figure],
            f"{each.median.value:.1%}",
            f"{each.worst:.1%}",
            f"{each.bias.value:+.1%}",
            each.worst_case,
        )
        for each in summaries(found, beside=True)
        if each.limit
    ]
    return markdown_table(("figure", "median", "worst", "bias", "worst case"), rows)


def _interval(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.1%} ({found.low:{sign}.1%} to {found.high:{sign}.1%})"


def _error_table(found: Sequence[Prediction]) -> str:
    rows = []
    for each in found:
        complaints = each.result.complaints
        void = f" **void**: {'; '.join(complaints[:3])}" if complaints else ""
        rows.append((f"{each.result.case.name}{void}", *(describe(each, figure) for figure in TITLES)))
    return markdown_table(("case", *TITLES.values()), rows)


def _beside_table(found: Sequence[Prediction]) -> str:
    figures = ("tpot_ms", "tokens_per_s", "ttft_ms")
    rows = []
    for each in found:
        by_round = (fmean(run.live.tpot_ms for run in rounds.beside) for rounds in each.result.rounds)
        described = (describe(each, figure, beside=True) for figure in figures)
        rows.append((each.result.case.name, *described, _span(by_round)))
    return markdown_table(("case", *(TITLES[figure] for figure in figures), "TPOT of rounds, ms"), rows)


def _case_table(found: Sequence[Prediction]) -> str:
    rows = []
    for each in found:
        case, rounds = each.result.case, each.result.rounds
        rows.append(
            (
                case.name,
                case.draft or "",
                case.windows,
                case.network,
                case.load,
                sum(len(one.samples) for one in rounds),
                f"{sum(one.took_s for one in rounds):.0f}",
                _span(one.live.tpot_ms for one in rounds),
                sum(one.num_void for one in rounds) or "",
            )
        )
    heading = ("case", "draft", "windows", "link", "load", "answers", "took, s", "TPOT of rounds, ms", "void runs")
    return markdown_table(heading, rows)


def _span(tpot_ms: Iterable[float]) -> str:
    known, digits = sorted(tpot_ms), DIGITS["tpot_ms"]
    return f"{known[0]:.{digits}f} … {known[-1]:.{digits}f}"


def _difference_table(found: Sequence[Prediction]) -> str:
    rows = [(each.result.case.name, "; ".join(differences(each))) for each in found]
    return markdown_table(("case", "live run, relative to the profile"), rows)


# --- terminal ---------------------------------------------------------------------------------------------------------


def table(found: Sequence[Prediction]) -> Table:
    """Errors, one row per case, and their medians, maxima and means."""
    shown = Table("case", *TITLES.values(), title="live → simulated (error)")
    for each in found:
        name = f"{each.result.case.name} (void)" if each.result.complaints else each.result.case.name
        shown.add_row(name, *(describe(each, figure) for figure in TITLES))
    made = {each.figure: each for each in summaries(found)}
    if made:
        shown.add_section()
        for name in ("median", "worst", "bias"):
            shown.add_row(name, *(_cell(made.get(figure), name) for figure in TITLES))
    return shown


def _cell(summary: ErrorSummary | None, name: str) -> str:
    if summary is None:
        return ""
    limit = getattr(summary.limit, name) if summary.limit else None
    value = {"median": summary.median.value, "worst": summary.worst, "bias": summary.bias.value}[name]
    return f"{value:.1%}" + (f" (≤ {limit:.0%})" if limit is not None else "")
