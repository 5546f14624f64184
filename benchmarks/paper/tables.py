"""The tables of docs/reports/paper.md, in Markdown, and their places in the page.

Ratios are geometric means over seeds with 95 % bootstrap intervals.

Invariant: a page keeps everything outside of its places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean

from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.paired import Ratio, compare
from benchmarks.paper.assumptions import Assumption, Outcome, alone
from dsd_sim.studies.compare import ComparisonFinding, ComparisonPlan, of_variant
from dsd_sim.studies.report import SimReport, figure_of
from dsd_sim.studies.sweep import SEED, SweepOutcome, groups_of

MINUS = "\N{MINUS SIGN}"
CELL, BASE, STACK = "gsm8k-600-10", "static 4", "wc-dnn, LAB"
PER_S, TPOT, TTFT = "requests_per_s", "tpot_ms.mean", "ttft_ms.mean"
STEPS = (  # what changes, from which variant, to which
    ("batching: by length", "static 4", "static 4, LAB"),
    ("window: threshold", "static 4", "dynamic"),
    ("window: learned", "static 4", "wc-dnn, FIFO"),
    ("window and batching: the paper's stack", "static 4", "wc-dnn, LAB"),
    ("window: goodput", "static 4", "goodput"),
    ("window: best in hindsight", "static 4", "best static"),
    ("transport: sliding, free run", "static 4", "sliding 4, FIFO"),
    ("window, sliding: 16", "sliding 4, FIFO", "sliding 16, FIFO"),
    ("batching, sliding: pass cost rule", "sliding 16, FIFO", "sliding 16"),
    ("window, sliding: adaptive", "sliding 16", "adaptive"),
    ("no drafting", "static 4", "cloud only"),
)


@dataclass(frozen=True, slots=True)
class SeededFindings:
    """The findings of a comparison, and the report of every seed. `reports`: by cell key."""

    plan: ComparisonPlan
    findings: Sequence[ComparisonFinding]
    reports: Mapping[str, SimReport]

    def values(self, scenario: str, variant: str, figure: str) -> list[float]:
        """With each seed; the seeds of all variants of a scenario are the same."""
        found = of_variant(self.findings, scenario, variant)
        return [figure_of(self.reports[key], figure) for key in found.cells]

    def ratios(self, scenario: str, end: str, start: str, figure: str) -> list[float]:
        """With each seed."""
        pairs = zip(self.values(scenario, end, figure), self.values(scenario, start, figure), strict=True)
        return [value / other for value, other in pairs]

    def ratio(self, scenario: str, end: str, start: str, figure: str) -> Ratio:
        return over_seeds(self.ratios(scenario, end, start, figure))


def over_seeds(ratios: Sequence[float]) -> Ratio:
    return compare([[ratio] for ratio in ratios], [[1.0]] * len(ratios))


def placed(page: str, name: str, table: str) -> str:
    """The page with a table at its place, between `<!-- name -->` and `<!-- end -->`. Raises ValueError without one."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for {name}")
    return pattern.sub(lambda match: f"{match[1]}{table}{match[2]}", page)


def cells_table(found: SeededFindings) -> str:
    """Requests per second and TPOT of the baseline; requests per second of each variant, divided by the baseline's."""
    baseline = found.plan.comparison.baseline
    names = [variant.name for variant in found.plan.comparison.variant if variant.name != baseline]
    lines = []
    for scenario in found.plan.scenarios:
        base = of_variant(found.findings, scenario, baseline).figures
        basis = f"{base[PER_S].mean:.1f}/s, {base[TPOT].mean:.1f} ms"
        lines.append([scenario, basis, *(_shown(found.ratio(scenario, name, baseline, PER_S)) for name in names)])
    return markdown_table(["cell", baseline, *names], lines)


def claims_table(found: SeededFindings, routed: Sequence[SweepOutcome], outcomes: Sequence[Outcome]) -> str:
    """The paper's figures beside ours."""
    stack = [each for each in found.findings if each.variant == STACK]
    tpot, ttft = ([each.ratios[name] or 0.0 for each in stack] for name in (TPOT, TTFT))
    before, after = (of_variant(found.findings, CELL, name).figures[PER_S].mean for name in (BASE, STACK))
    ours = next(each for each in outcomes if each.assumed == Assumption())
    crossing = "round trip at which static 4 is as slow as the cloud alone; ours in the centre of the sweep"
    lines = [
        [f"requests/s, full stack to static 4, {CELL}", "+9.7 %", _percents(found.ratio(CELL, STACK, BASE, PER_S))],
        ['requests/s, GSM8K, "plain" to full stack; here static 4', "25.1 → 28.1", f"{before:.1f} → {after:.1f}"],
        ["TPOT, full stack to static 4, lowest to highest cell", f"{MINUS}10.7 % to {MINUS}6 %", _range(tpot)],
        ["TTFT, full stack to static 4, lowest to highest cell", f"{MINUS}4.1 % to {MINUS}0.5 %", _range(ttft)],
        [crossing, "50 to 60 ms", _crossing(ours)],
        *(
            [f"requests/s, JSQ to random, {4 * num:,} drafters", paper, _percents(_jsq(routed, num))]
            for num, paper in ((50, "not given"), (150, "JSQ better"), (250, "JSQ better"), (500, "JSQ loses its edge"))
        ),
    ]
    return markdown_table(["figure", "the paper", "ours"], lines)


def _jsq(routed: Sequence[SweepOutcome], num_clients: int) -> Ratio:
    """Requests per second with JSQ, divided by those with random routing, in stop-and-wait."""

    def values(routing: str) -> list[float]:
        wanted = {"workload.num_clients": num_clients, "policies.routing": routing, "policies.stop_and_wait": True}
        return [each.report.requests_per_s for each in routed if wanted.items() <= each.settings.items()]

    return over_seeds([jsq / random for jsq, random in zip(values("jsq"), values("random"), strict=True)])


def _range(ratios: Sequence[float]) -> str:
    return f"{_percent(min(ratios))} to {_percent(max(ratios))}"


def _crossing(outcome: Outcome) -> str:
    return f"{outcome.crossing_ms:.0f} ms" if outcome.crossing_ms > 0 else "never"


def steps_table(found: SeededFindings) -> str:
    """What each step changes: geometric mean over cells with its interval over seeds; lowest and highest cell."""
    lines = []
    for what, start, end in STEPS:
        parts = [part for figure in (PER_S, TPOT, TTFT) for part in _step(found, start, end, figure)]
        lines.append([what, f"{start} → {end}", *parts])
    return markdown_table(["what changes", "from → to", "requests/s", "cells", "TPOT", "cells", "TTFT", "cells"], lines)


def _step(found: SeededFindings, start: str, end: str, figure: str) -> tuple[str, str]:
    cells = [found.ratios(scenario, end, start, figure) for scenario in found.plan.scenarios]
    seeds = [geometric_mean(ratios) for ratios in zip(*cells, strict=True)]
    return _percents(over_seeds(seeds)), _range([geometric_mean(ratios) for ratios in cells])


def _shown(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _percents(ratio: Ratio) -> str:
    return f"{_percent(ratio.value)} ({_percent(ratio.low)} to {_percent(ratio.high)})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+z.1f} %".replace("-", MINUS)


def spread_of(findings: Sequence[ComparisonFinding]) -> str:
    """The widest range over seeds of a variant's requests per second, relative to its mean."""
    found = [each.figures[PER_S] for each in findings]
    return f"{100 * max((each.high - each.low) / each.mean for each in found):.1f} %"


def routing_table(outcomes: Sequence[SweepOutcome]) -> str:
    """Requests per second, mean TPOT and p90 of TTFT by drafters, transport and router; with the range over seeds."""
    lines = []
    for group in groups_of(outcomes, (SEED,)):
        settings = group.settings
        way = "stop-and-wait, window 4" if settings.get("policies.stop_and_wait") else "sliding, window 16"
        figures = ([_of(outcome, name) for outcome in group.outcomes] for name in ("per_s", "tpot", "ttft"))
        shown = (f"{fmean(found):.1f} ({min(found):.1f}–{max(found):.1f})" for found in figures)
        num = 4 * int(settings["workload.num_clients"])
        lines.append([f"{num:,}", way, str(settings["policies.routing"]), *shown])
    return markdown_table(["drafters", "transport", "routing", "requests/s", "TPOT, ms", "TTFT p90, ms"], lines)


def _of(outcome: SweepOutcome, name: str) -> float:
    report = outcome.report
    return {"per_s": report.requests_per_s, "tpot": report.tpot_ms.mean, "ttft": report.ttft_ms.p90}[name]


ASSUMED = ["pass", "draft step", "clients", "acceptance"]


def alone_table(outcomes: Sequence[Outcome]) -> str:
    """Our assumption, and each with one part changed."""
    return markdown_table([*ASSUMED, "static 4", "full stack", "crossover"], [_line(each) for each in alone(outcomes)])


def closest_table(outcomes: Sequence[Outcome], num: int = 5) -> str:
    """The assumptions that come closest to all three of the paper's figures."""
    closest = sorted(outcomes, key=lambda each: each.distance)[:num]
    return markdown_table([*ASSUMED, "static 4", "full stack", "crossover"], [_line(each) for each in closest])


def _line(outcome: Outcome) -> list[str]:
    assumed = outcome.assumed
    given = [f"× {assumed.passes:g}", f"× {assumed.drafts:g}", str(assumed.clients), f"{assumed.rate:g}"]
    return [*given, f"{outcome.per_s:.1f}/s, {outcome.tpot_ms:.1f} ms", f"{outcome.gain:.3f}", _crossing(outcome)]


def met_table(outcomes: Sequence[Outcome]) -> str:
    """How many assumptions give each of the paper's figures, and each pair of them."""
    met = [each.met for each in outcomes]
    wanted: dict[str, tuple[int, ...]] = {
        "25.1 requests/s with static 4, within 10 %": (0,),
        "full stack 9 to 15 % above static 4": (1,),
        "crossover at 50 to 60 ms": (2,),
        "requests/s and gain": (0, 1),
        "requests/s and crossover": (0, 2),
        "gain and crossover": (1, 2),
        "all three": (0, 1, 2),
    }
    lines = [
        [what, f"{sum(all(each[i] for i in which) for each in met)} of {len(met)}"] for what, which in wanted.items()
    ]
    return markdown_table(["the paper's figure", "assumptions that give it"], lines)
