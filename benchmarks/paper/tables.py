"""The tables of docs/reports/paper.md, in Markdown, and their places in the page.

Invariant: a page keeps everything outside of its places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, geometric_mean

from benchmarks.harness.markdown import markdown_table
from benchmarks.paper.assumptions import Assumption, Outcome, alone
from dsd_sim.studies.compare import ComparisonFinding, ComparisonPlan, of_variant
from dsd_sim.studies.sweep import SEED, SweepOutcome, groups_of

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


def placed(page: str, name: str, table: str) -> str:
    """The page with a table at its place, between `<!-- name -->` and `<!-- end -->`. Raises ValueError without one."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no place for {name}")
    return pattern.sub(lambda match: f"{match[1]}{table}{match[2]}", page)


def cells_table(plan: ComparisonPlan, findings: Sequence[ComparisonFinding]) -> str:
    """Requests per second and TPOT of the baseline; requests per second of each variant, divided by the baseline's."""
    names = [variant.name for variant in plan.comparison.variant if variant.name != plan.comparison.baseline]
    lines = []
    for scenario in plan.scenarios:
        base = of_variant(findings, scenario, plan.comparison.baseline).figures
        found = [of_variant(findings, scenario, name).ratios[PER_S] or 0.0 for name in names]
        basis = f"{base[PER_S].mean:.1f}/s, {base[TPOT].mean:.1f} ms"
        lines.append([scenario, basis, *(f"{ratio:.2f}" for ratio in found)])
    return markdown_table(["cell", plan.comparison.baseline, *names], lines)


def claims_table(
    findings: Sequence[ComparisonFinding], routed: Sequence[SweepOutcome], outcomes: Sequence[Outcome]
) -> str:
    """The paper's figures beside ours."""
    stack = [each for each in findings if each.variant == STACK]
    cell = next(each for each in stack if each.scenario == CELL)
    base = of_variant(findings, CELL, BASE).figures[PER_S].mean
    tpot, ttft = ([each.ratios[name] or 0.0 for each in stack] for name in (TPOT, TTFT))
    ours = next(each for each in outcomes if each.assumed == Assumption())
    lines = [
        [f"requests/s, full stack to static 4, {CELL}", "+9.7 %", _percent(cell.ratios[PER_S] or 0.0)],
        ["requests/s, plain to full stack, GSM8K", "25.1 → 28.1", f"{base:.1f} → {cell.figures[PER_S].mean:.1f}"],
        ["TPOT, full stack to static 4, all cells", "−10.7 % to −6 %", _range(tpot)],
        ["TTFT, full stack to static 4, all cells", "−4.1 % to −0.5 %", _range(ttft)],
        ["round trip at which static 4 is as slow as the cloud alone", "50 to 60 ms", _crossing(ours)],
        *(
            [f"requests/s, JSQ to random, {4 * num:,} drafters", paper, _percent(_jsq(routed, num))]
            for num, paper in ((50, ""), (150, "JSQ better"), (250, "JSQ better"), (500, "JSQ loses its edge"))
        ),
    ]
    return markdown_table(["figure", "the paper", "ours"], lines)


def _jsq(routed: Sequence[SweepOutcome], num_clients: int) -> float:
    """Requests per second with JSQ, divided by those with random routing, in stop-and-wait."""

    def mean(routing: str) -> float:
        wanted = {"workload.num_clients": num_clients, "policies.routing": routing, "policies.stop_and_wait": True}
        found = [each.report.requests_per_s for each in routed if wanted.items() <= each.settings.items()]
        return fmean(found)

    return mean("jsq") / mean("random")


def _range(ratios: Sequence[float]) -> str:
    return f"{_percent(min(ratios))} to {_percent(max(ratios))}"


def _crossing(outcome: Outcome) -> str:
    return f"{outcome.crossing_ms:.0f} ms" if outcome.crossing_ms > 0 else "never"


def steps_table(plan: ComparisonPlan, findings: Sequence[ComparisonFinding]) -> str:
    """What each step changes: geometric mean over cells, lowest and highest cell."""
    lines = []
    for what, start, end in STEPS:
        found = [_step(plan, findings, start, end, figure) for figure in (PER_S, TPOT, TTFT)]
        lines.append([what, f"{start} → {end}", *found])
    return markdown_table(["what changes", "from → to", "requests/s", "TPOT", "TTFT"], lines)


def _step(plan: ComparisonPlan, findings: Sequence[ComparisonFinding], start: str, end: str, figure: str) -> str:
    def mean(scenario: str, variant: str) -> float:
        return of_variant(findings, scenario, variant).figures[figure].mean

    ratios = [mean(scenario, end) / mean(scenario, start) for scenario in plan.scenarios]
    return f"{_percent(geometric_mean(ratios))} ({_percent(min(ratios))} to {_percent(max(ratios))})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def spread_of(findings: Sequence[ComparisonFinding]) -> str:
    """The widest range over seeds of a variant's requests per second, relative to its mean."""
    found = [each.figures[PER_S] for each in findings]
    return f"{100 * max((each.high - each.low) / each.mean for each in found):.1f} %"


def routing_table(outcomes: Sequence[SweepOutcome]) -> str:
    """Requests per second, mean TPOT and p90 of TTFT by drafters, transport and router; means over seeds."""
    lines = []
    for group in groups_of(outcomes, (SEED,)):
        settings = group.settings
        way = "stop-and-wait, window 4" if settings.get("policies.stop_and_wait") else "sliding, window 16"
        figures = (fmean(_of(outcome, name) for outcome in group.outcomes) for name in ("per_s", "tpot", "ttft"))
        num = 4 * int(settings["workload.num_clients"])
        lines.append([f"{num:,}", way, str(settings["policies.routing"]), *(f"{figure:.1f}" for figure in figures)])
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
