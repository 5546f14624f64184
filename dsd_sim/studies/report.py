"""The report of a simulation, in the words of docs/glossary.md.

Invariant: a report names its scenario and seed and holds nothing of the wall clock, so equal runs report equal bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rich.table import Table

from dsd_sim.engine.fleet import SimFleet
from dsd_sim.engine.pair_reports import MeanReport
from dsd_sim.scenario.scenario import Objective, Scenario
from dsd_sim.studies.measured import MeasuredPart, Totals, share_between

QUANTILES = (0.5, 0.9, 0.99)
PRICE = 0.01  # of an unused guess, in tokens


class TimeStats(Struct, frozen=True):
    """Milliseconds, over requests."""

    mean: float
    p50: float
    p90: float
    p99: float


class GuessFates(Struct, frozen=True):
    """Guesses of all requests, by fate."""

    drafted: int
    accepted: int
    rejected: int
    late: int
    discarded: int


class TargetTokens(Struct, frozen=True):
    """Tokens of all answers that are the target's own, in passes with guesses."""

    recovered: int  # in place of a rejected guess
    bonus: int  # behind guesses that were all accepted


class SimReport(Struct, frozen=True):
    """The report of one simulation, of the measured part of its run (measured.py)."""

    scenario: str
    seed: int
    num_requests: int  # that arrive in the measured part
    num_tokens: int  # of their answers
    num_windows: int  # windows verified: verdicts of passes with draws
    virtual_s: float  # length of the measured part
    tokens_per_s: float  # delivered in the measured part
    requests_per_s: float
    goodput: float  # tokens per second, of answers within the objective
    soft_goodput: float  # likewise, but an answer above it counts by objective / time, for TTFT and for TPOT
    priced_goodput: float  # soft goodput, less PRICE for each unused guess
    guesses_per_token: float  # drafted guesses / tokens of answers
    ttft_ms: TimeStats
    tpot_ms: TimeStats  # of answers with at least two tokens
    latency_ms: TimeStats
    fates: GuessFates
    own: TargetTokens
    acceptance: float  # (accepted + late) / (accepted + late + rejected)
    acceptance_length: float  # tokens committed per verify step
    verifier_utilisation: float  # share of the time in which a pass runs, mean over verifiers
    drafter_utilisation: float  # share of the time in which a draft step runs, mean over drafters
    batch: float  # sessions per pass, mean
    queue: float  # queue utilisation at the end of a pass, mean
    seen: MeanReport | None  # means over the reports to controllers; None if there was none
    unreached: tuple[str, ...] = ()  # changes and failures after the end of the run
    looked_up: int = 0  # tokens of the answers that verifiers guessed from the text

    def encode(self) -> bytes:
        """JSON that ends with a line feed."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def _names_of_figures() -> Iterator[str]:
    for field in msgspec.structs.fields(SimReport):
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from (f"{field.name}.{part}" for part in field.type.__struct_fields__)
        elif field.type in (int, float) and field.name != "seed":
            yield field.name


FIGURES = tuple(_names_of_figures())  # dotted names of the numbers in a report, such as ttft_ms.p50 and goodput


def figure_of(report: SimReport, name: str) -> float:
    """`name`: one of FIGURES."""
    return float(attrgetter(name)(report))


def figures_of(report: SimReport) -> dict[str, float]:
    """All FIGURES of a report."""
    return {name: attrgetter(name)(report) for name in FIGURES}


def is_lower_better(figure: str) -> bool:
    """True for times, false for all other figures."""
    return figure.partition(".")[0].endswith("_ms")


def write_json(path: Path, content: Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one line per row, below a header. All rows must have the keys of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def report_of(scenario: Scenario, fleet: SimFleet, measured: MeasuredPart | None = None) -> SimReport:
    """The report of a fleet that has served all requests: of the measured part of its run, or of all of it."""
    world = fleet.world
    begin, end = (measured or MeasuredPart()).ends_of(world)
    done = end.since(begin)
    rates = _rates(world.requests, share_between(begin.at_ms, end.at_ms, world.requests), scenario.objective, done)
    arrivals = world.requests["arrival_ms"]
    requests = world.requests[(arrivals >= begin.at_ms) & (arrivals <= end.at_ms)]
    tpot = _tpot(requests)
    fates = GuessFates(*(int(requests[name].sum()) for name in GuessFates.__struct_fields__))
    num_judged = fates.accepted + fates.late + fates.rejected
    num_tokens = int(requests["tokens"].sum())
    return SimReport(
        scenario=scenario.name,
        seed=scenario.seed,
        num_requests=len(requests),
        num_tokens=num_tokens,
        num_windows=done.num_windows,
        virtual_s=done.at_ms / 1000,
        **rates,
        priced_goodput=priced(rates["soft_goodput"], fates, num_tokens),
        guesses_per_token=fates.drafted / max(num_tokens, 1),
        ttft_ms=_times(requests["first_ms"] - requests["arrival_ms"]),
        tpot_ms=_times(tpot[requests["tokens"] > 1]),
        latency_ms=_times(requests["done_ms"] - requests["arrival_ms"]),
        fates=fates,
        own=TargetTokens(*(int(requests[name].sum()) for name in TargetTokens.__struct_fields__)),
        acceptance=(fates.accepted + fates.late) / num_judged if num_judged else 0.0,
        acceptance_length=num_tokens / max(int(requests["passes"].sum()), 1),
        verifier_utilisation=done.verifier_busy_ms / done.at_ms,
        drafter_utilisation=done.drafter_busy_ms / done.at_ms,
        batch=done.sum_batch / max(done.num_passes, 1),
        queue=done.sum_queue / max(done.num_passes, 1),
        seen=fleet.reported.means(),
        unreached=tuple(_unreached(scenario, float(world.requests["done_ms"].max()) / 1000)),
        looked_up=int(requests["looked_up"].sum()),
    )


def _tpot(requests: NDArray[Any]) -> NDArray[np.float64]:
    spans = requests["done_ms"] - requests["first_ms"]
    found: NDArray[np.float64] = spans / np.maximum(requests["tokens"] - 1, 1)
    return found


def _rates(requests: NDArray[Any], share: NDArray[np.float64], objective: Objective, done: Totals) -> dict[str, float]:
    """The figures per second. `share`: of each answer that was delivered in the measured part."""
    ttft, tpot = requests["first_ms"] - requests["arrival_ms"], _tpot(requests)
    is_good = (ttft <= objective.ttft_ms) & (tpot <= objective.tpot_ms)
    kept = _kept(ttft, objective.ttft_ms) * _kept(tpot, objective.tpot_ms)
    tokens, seconds = requests["tokens"] * share, done.at_ms / 1000
    sums = {
        "tokens_per_s": tokens,
        "requests_per_s": share,
        "goodput": tokens[is_good],
        "soft_goodput": tokens * kept,
    }
    return {name: float(values.sum()) / seconds for name, values in sums.items()}


def priced(goodput: float, fates: GuessFates, num_tokens: int, price: float = PRICE) -> float:
    """A goodput, less `price` tokens for each guess that was made and not used."""
    return goodput * (1 - price * (fates.drafted - fates.accepted) / max(num_tokens, 1))


def _unreached(scenario: Scenario, end_s: float) -> Iterator[str]:
    yield from (f"change at {each.at_s:g} s" for each in scenario.change if each.at_s >= end_s)
    yield from (f"failure of {each.part} at {each.at_s:g} s" for each in scenario.failure if each.at_s >= end_s)


def _kept(times: NDArray[np.float64], objective_ms: float) -> NDArray[np.float64]:
    """1 for times within the objective, else objective / time."""
    return objective_ms / np.maximum(times, objective_ms)


def _times(values: NDArray[np.float64]) -> TimeStats:
    if not len(values):
        return TimeStats(0.0, 0.0, 0.0, 0.0)
    return TimeStats(float(values.mean()), *(float(np.quantile(values, quantile)) for quantile in QUANTILES))


def table_of(reports: Sequence[SimReport], num_requests: int) -> Table:
    """Means over equal runs with different seeds, and from where to where a row's first figure goes.

    `num_requests`: of the scenario, with those of the warm-up."""
    first, mean = reports[0], mean_of(reports)
    title = f"{first.scenario}, means over {len(reports)} seeds" if len(reports) > 1 else f"{first.scenario}, one seed"
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, text, figure in _rows(mean):
        row = [name, text]
        if len(reports) > 1:
            values = [figure_of(report, figure) for report in reports]
            row.append(f"{_brief(min(values))} to {_brief(max(values))}")
        table.add_row(*row)
    if first.num_requests < num_requests:
        table.caption = f"{first.num_requests:,} of {num_requests:,} requests; the others are the warm-up"
        table.caption_justify = "left"
    unreached = {each for report in reports for each in report.unreached}
    if unreached:
        table.add_row("ended before", "; ".join(sorted(unreached)))
    return table


def mean_of(reports: Sequence[SimReport]) -> SimReport:
    """The report with the mean of each figure."""
    return _mean(reports)  # type: ignore[no-any-return]


def _mean(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Struct):
        means = {name: _mean([getattr(each, name) for each in values]) for name in first.__struct_fields__}
        return type(first)(**means)
    return fmean(values) if isinstance(first, int | float) else first


def _brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.3f}"


def _rows(report: SimReport) -> Iterator[tuple[str, str, str]]:
    """Name and text of each row, and its first figure."""
    fates = report.fates
    shares = ", ".join(f"{getattr(fates, name):,.0f} {name}" for name in ("accepted", "rejected", "late", "discarded"))
    answers = f"{report.num_requests:,.0f}, {report.num_tokens:,.0f} tokens, in {report.virtual_s:,.1f} s"
    yield "answers", answers, "virtual_s"
    throughput = f"{report.tokens_per_s:,.1f} tokens/s, {report.requests_per_s:,.2f} requests/s"
    yield "throughput", throughput, "tokens_per_s"
    goodput = f"{report.goodput:,.1f} tokens/s, {report.priced_goodput:,.1f} soft and less unused guesses"
    yield "goodput", goodput, "goodput"
    yield "TTFT, ms", *_percentiles(report, "ttft_ms")
    yield "TPOT, ms", *_percentiles(report, "tpot_ms")
    yield "latency, ms", *_percentiles(report, "latency_ms")
    yield "drafted", f"{fates.drafted:,.0f}, {report.guesses_per_token:.2f} a token: {shares}", "fates.drafted"
    if report.looked_up:
        yield "from the text", f"{report.looked_up:,.0f} of {report.num_tokens:,.0f} tokens", "looked_up"
    yield "of the target", f"{report.own.recovered:,.0f} recovered, {report.own.bonus:,.0f} bonus", "own.recovered"
    acceptance = f"{report.acceptance:.3f}, {report.acceptance_length:.2f} tokens per verify step"
    yield "acceptance", acceptance, "acceptance"
    utilisation = f"verifiers {report.verifier_utilisation:.2f}, drafters {report.drafter_utilisation:.2f}"
    yield "utilisation", utilisation, "verifier_utilisation"
    yield "passes", f"{report.batch:.2f} sessions, queue utilisation {report.queue:.3f}", "batch"


def _percentiles(report: SimReport, figure: str) -> tuple[str, str]:
    times: TimeStats = getattr(report, figure)
    shown = f"{times.mean:,.1f} mean, {times.p50:,.1f} median, {times.p90:,.1f} p90, {times.p99:,.1f} p99"
    return shown, f"{figure}.mean"
