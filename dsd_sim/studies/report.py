"""The report of a simulation, in the words of docs/glossary.md.

Invariant: a report names its scenario and seed and holds nothing of the wall clock, so equal runs report equal bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from rich.table import Table

from dsd_sim.engine.fleet import SimFleet
from dsd_sim.engine.pair_reports import MeanReport
from dsd_sim.scenario.scenario import Scenario

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
    """The report of one simulation."""

    scenario: str
    seed: int
    num_requests: int
    num_tokens: int
    num_windows: int  # windows verified: verdicts of passes with draws
    virtual_s: float  # from the first arrival to the last token
    tokens_per_s: float
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


def report_of(scenario: Scenario, fleet: SimFleet) -> SimReport:
    """The report of a fleet that has served all requests."""
    world = fleet.world
    requests, nodes = world.requests, world.nodes
    begin, end = float(requests["arrival_ms"].min()), float(requests["done_ms"].max())
    virtual_s = max(end - begin, 1e-9) / 1000
    ttft = requests["first_ms"] - requests["arrival_ms"]
    spans = requests["done_ms"] - requests["first_ms"]
    tpot = spans / np.maximum(requests["tokens"] - 1, 1)
    objective = scenario.objective
    is_good = (ttft <= objective.ttft_ms) & (tpot <= objective.tpot_ms)
    kept = _kept(ttft, objective.ttft_ms) * _kept(tpot, objective.tpot_ms)
    fates = GuessFates(*(int(requests[name].sum()) for name in GuessFates.__struct_fields__))
    num_judged = fates.accepted + fates.late + fates.rejected
    num_passes = int(nodes["num_passes"].sum())
    num_tokens = int(requests["tokens"].sum())
    soft_goodput = float((requests["tokens"] * kept).sum()) / virtual_s
    return SimReport(
        scenario=scenario.name,
        seed=scenario.seed,
        num_requests=len(requests),
        num_tokens=num_tokens,
        num_windows=int(world.clock[0]["num_windows"]),
        virtual_s=virtual_s,
        tokens_per_s=num_tokens / virtual_s,
        requests_per_s=len(requests) / virtual_s,
        goodput=float(requests["tokens"][is_good].sum()) / virtual_s,
        soft_goodput=soft_goodput,
        priced_goodput=priced(soft_goodput, fates, num_tokens),
        guesses_per_token=fates.drafted / max(num_tokens, 1),
        ttft_ms=_times(ttft),
        tpot_ms=_times(tpot[requests["tokens"] > 1]),
        latency_ms=_times(requests["done_ms"] - requests["arrival_ms"]),
        fates=fates,
        own=TargetTokens(*(int(requests[name].sum()) for name in TargetTokens.__struct_fields__)),
        acceptance=(fates.accepted + fates.late) / num_judged if num_judged else 0.0,
        acceptance_length=num_tokens / max(int(requests["passes"].sum()), 1),
        verifier_utilisation=float(nodes["busy_ms"].mean()) / (virtual_s * 1000),
        drafter_utilisation=float(world.devices["busy_ms"].mean()) / (virtual_s * 1000),
        batch=float(nodes["sum_batch"].sum()) / max(num_passes, 1),
        queue=float(nodes["sum_queue"].sum()) / max(num_passes, 1),
        seen=fleet.reported.means(),
        unreached=tuple(_unreached(scenario, end / 1000)),
    )


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


def table_of(report: SimReport) -> Table:
    table = Table("", "", title=f"{report.scenario}, seed {report.seed}", title_justify="left", show_header=False)
    for name, value in _rows(report):
        table.add_row(name, value)
    return table


def _rows(report: SimReport) -> Iterator[tuple[str, str]]:
    fates = report.fates
    shares = ", ".join(f"{getattr(fates, name):,} {name}" for name in ("accepted", "rejected", "late", "discarded"))
    yield "requests, tokens", f"{report.num_requests:,}, {report.num_tokens:,} in {report.virtual_s:,.1f} s"
    yield "throughput", f"{report.tokens_per_s:,.1f} tokens/s, {report.requests_per_s:,.2f} requests/s"
    yield "goodput", f"{report.goodput:,.1f} tokens/s, {report.priced_goodput:,.1f} soft and less unused guesses"
    yield "TTFT, ms", _percentiles(report.ttft_ms)
    yield "TPOT, ms", _percentiles(report.tpot_ms)
    yield "latency, ms", _percentiles(report.latency_ms)
    yield "drafted", f"{fates.drafted:,}, {report.guesses_per_token:.2f} a token: {shares}"
    yield "of the target", f"{report.own.recovered:,} recovered, {report.own.bonus:,} bonus"
    yield "acceptance", f"{report.acceptance:.3f}, {report.acceptance_length:.2f} tokens per verify step"
    yield "utilisation", f"verifiers {report.verifier_utilisation:.2f}, drafters {report.drafter_utilisation:.2f}"
    yield "passes", f"{report.batch:.2f} sessions, queue utilisation {report.queue:.3f}"
    if report.unreached:
        yield "ended before", "; ".join(report.unreached)


def _percentiles(times: TimeStats) -> str:
    return f"{times.p50:,.1f} median, {times.p90:,.1f} p90, {times.p99:,.1f} p99, {times.mean:,.1f} mean"
