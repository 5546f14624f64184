"""Results of contestants on scenarios, and how ours compares with each of the others.

Invariant: all contestants get the same requests and guesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from awc.estimators.sliding import PRICE
from awc_training.intervals import Interval, geometric_mean, mean, ratio, ratio_of_means
from awc_training.rivals import Contestant
from awc_training.runs import run
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.report import SimReport, priced

SHOWN_PRICES = (0.0, 0.01, 0.03, 0.05)
LEAST_MS = 1e-6
GREEDIEST = "static 32"  # a label
LEAST_GOODPUT = 0.995  # of each rival's, priced
LEAST_SPEED, MOST_GUESSES = 0.99, 0.6  # of those of GREEDIEST


@dataclass(frozen=True, slots=True)
class Results:
    """One contestant's reports, in the order of the scenarios."""

    label: str
    reports: Sequence[SimReport]

    @property
    def speeds(self) -> list[float]:
        """Tokens per millisecond of an answer."""
        return [1 / max(report.tpot_ms.mean, LEAST_MS) for report in self.reports]

    @property
    def throughputs(self) -> list[float]:
        """Tokens per second of all answers."""
        return [report.tokens_per_s for report in self.reports]

    @property
    def ttfts(self) -> list[float]:
        """Mean milliseconds to the first token."""
        return [report.ttft_ms.mean for report in self.reports]

    @property
    def guesses(self) -> list[float]:
        """Guesses per token of an answer."""
        return [report.guesses_per_token for report in self.reports]

    def priced(self, price: float) -> list[float]:
        return [priced(each.soft_goodput, each.fates, each.num_tokens, price) for each in self.reports]


def results_of(
    entries: Sequence[Contestant], scenarios: Sequence[Scenario], out: Path, workers: int | None, folder: Path = FOLDER
) -> list[Results]:
    """`out`: for the results of runs, which are reused. `folder`: of the scenarios' files."""
    cells = {each.label: [each.cell(scenario, folder) for scenario in scenarios] for each in entries}
    reports = run((one for row in cells.values() for one in row), out, workers)
    return [Results(each.label, [reports[one.key] for one in cells[each.label]]) for each in entries]


def best_of(rivals: Sequence[Results]) -> Results:
    """The fastest on average."""
    return max(rivals, key=lambda each: geometric_mean(each.speeds))


def standings(ours: Results, others: Sequence[Results]) -> Iterator[str]:
    """A table: ours against each of the others."""
    yield f"Ratios are {ours.label} / this policy: above 1, {ours.label} is better, except for guesses."
    yield "*Speed*: 1 / mean TPOT. *Price*: priced goodput at that price of an unused guess."
    yield "Parentheses: 95 % bootstrap intervals over scenarios."
    yield ""
    shown = " | ".join(f"price {price:g}" for price in SHOWN_PRICES)
    rows = [f"{ours.label} | {mean(ours.guesses).shown(2)} | | | {' | '.join('' for _ in SHOWN_PRICES)}"]
    for other in others:
        drafted = mean(other.guesses)
        fewer = ratio_of_means(ours.guesses, other.guesses).shown(2) if drafted.value else ""
        found = [ratio(ours.speeds, other.speeds)]
        found += [ratio(ours.priced(price), other.priced(price)) for price in SHOWN_PRICES]
        rows.append(f"{other.label} | {drafted.shown(2)} | {fewer} | {' | '.join(map(str, found))}")
    yield from table(f"policy | guesses per token | guesses, ratio | speed, ratio | {shown}", rows)


def requirements(ours: Results, others: Sequence[Results]) -> Iterator[str]:
    """A table: what the default policy must reach on the sealed set."""
    yield f"Price of a guess: {PRICE:g}. Met: the interval's unfavourable end meets it."
    yield ""
    greediest = next(each for each in others if each.label == GREEDIEST)
    found = [(f"goodput to {each.label}", ratio(ours.priced(PRICE), each.priced(PRICE))) for each in others]
    rows = [(what, each, LEAST_GOODPUT) for what, each in sorted(found, key=lambda row: row[1].low)]
    rows.append((f"speed to {GREEDIEST}", ratio(ours.speeds, greediest.speeds), LEAST_SPEED))
    lines = [f"{what} | {each} | at least {least:g} | {met(each, least)}" for what, each, least in rows]
    guesses = ratio_of_means(ours.guesses, greediest.guesses)
    is_met = met(guesses, MOST_GUESSES, is_most=True)
    lines.append(f"guesses per token to {GREEDIEST} | {guesses} | at most {MOST_GUESSES:g} | {is_met}")
    yield from table("what | figure | wanted | met", lines)


def met(found: Interval, limit: float, *, is_most: bool = False) -> str:
    """Whether the unfavourable end of an interval meets a limit, or else its value does."""
    if is_most:
        found, limit = Interval(-found.value, -found.high, -found.low), -limit
    if found.low >= limit:
        return "yes"
    return "by its value only" if found.value >= limit else "**no**"


def frontier_table(found: Sequence[Results], target_only: Results) -> Iterator[str]:
    """Guesses per token against speed. A policy is on the frontier if no other is as fast with as few guesses."""
    points = [(each, mean(each.guesses), ratio(each.speeds, target_only.speeds)) for each in found]
    yield "Guesses per token against speed. A policy is on the frontier if no other is as fast with as few guesses."
    yield f"*adaptive* without a price has {PRICE:g}. Parentheses: 95 % bootstrap intervals over scenarios."
    yield ""
    rows = []
    for each, drafted, speed in sorted(points, key=lambda point: point[1].value):
        here = (drafted.value, -speed.value)
        is_beaten = any(
            other.value <= drafted.value and faster.value >= speed.value and (other.value, -faster.value) != here
            for _, other, faster in points
        )
        rows.append(f"{each.label} | {drafted.shown(2)} | {speed} | {'' if is_beaten else 'yes'}")
    yield from table("policy | guesses per token | speed to target-only | on the frontier", rows)


def standing(ours: Results, others: Sequence[Results]) -> tuple[Results, Interval]:
    """The fastest of the others, and our speed / its speed."""
    best = best_of(others)
    return best, ratio(ours.speeds, best.speeds)


def table(heading: str, rows: Iterable[str]) -> Iterator[str]:
    """A Markdown table. Cells are separated by " | "."""
    yield f"| {heading} |"
    yield f"|{' --- |' * len(heading.split(' | '))}"
    yield from (f"| {row} |" for row in rows)
    yield ""
