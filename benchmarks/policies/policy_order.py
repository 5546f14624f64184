"""Whether window policies have the same order in DSD-Sim as live.

Run `python -m benchmarks.policies --policies` first, then `python -m benchmarks.policies.policy_order`.

Invariant: of a live cell the simulator is told the load, the link, the target's time per token without drafts and a
drafter's step; no speed of a policy. Two modes are in the same order where the one that was faster live by more than
APART is faster in the simulation by more than EQUAL.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.origin import Origin
from benchmarks.policies.__main__ import FOLDER
from benchmarks.policies.findings import find
from benchmarks.policies.measure import CellResult, read_result
from benchmarks.policies.plan import POLICY_MODES, TARGET_ONLY, Mode
from benchmarks.validation.scenario import closed_loop
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.report import report_of
from shared.data.profiles import PassTimes, StepTimes, read_profile

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "recordings"
TARGET, DRAFT = (ROOT / "profiles" / f"xeon-smollm2-135m-{name}.json" for name in ("target", "draft-int8"))
APART = 0.03  # speeds that differ by a smaller share are as good as each other
EQUAL = 0.001  # and simulated ones the same
OWN_RTT_MS = 2.0  # of services on one machine, as drafters measure it
NUM_SEEDS = 5
NUM_ROUNDS = 20

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Order:
    """Of one cell: speeds to target-only by mode, and the pairs of modes that were apart live, faster one first."""

    rtt_ms: int
    num_sessions: int
    num_drafters: int
    live: dict[str, float]
    simulated: dict[str, float]

    @property
    def apart(self) -> list[tuple[str, str]]:
        return [(a, b) for a, b in itertools.permutations(self.live, 2) if self.live[a] > (1 + APART) * self.live[b]]

    @property
    def alike(self) -> list[tuple[str, str]]:
        """Those of them in the same order in the simulation."""
        return [(a, b) for a, b in self.apart if self.simulated[a] > (1 + EQUAL) * self.simulated[b]]


def order_of(result: CellResult, passes: PassTimes, steps: StepTimes, num_seeds: int = NUM_SEEDS) -> Order:
    """Simulates a live cell; passes and steps grow with what they compute as these do. Raises ValueError for a cell
    whose figures are void."""
    finding, named = find(result), {mode.name: mode for mode in POLICY_MODES}
    cell = f"the cell {result.draft}, RTT {result.rtt_ms} ms, {result.num_sessions} at once"
    if result.complaints or not finding.modes:
        raise ValueError(f"{cell}, is void: {(*result.complaints, 'failed answers')[0]}")
    if strange := set(result.modes) - set(named):
        raise ValueError(f"{cell}, is none of bench --policies: it has {', '.join(sorted(strange))}")
    if not any(ms for each in result.rounds for ms in each.draft_ms.values()):
        raise ValueError(f"{cell}, knows no step of its drafter")
    times = {
        name: _tpot_ms(scenario_of(result, named[name], passes, steps), num_seeds)
        for name in (found.mode for found in finding.modes)
    }
    return Order(
        result.rtt_ms,
        result.num_sessions,
        result.num_drafters,
        live={found.mode: found.speed.value for found in finding.modes},
        simulated={name: times[TARGET_ONLY.name] / tpot_ms for name, tpot_ms in times.items()},
    )


def scenario_of(result: CellResult, mode: Mode, passes: PassTimes, steps: StepTimes) -> Scenario:
    """As many clients as sessions, and the times of the cell's own machine."""
    samples = [sample for each in result.rounds for sample in each.samples[TARGET_ONLY.name]]
    prompt = fmean(sample.num_prompt_tokens for sample in samples)
    num, context = result.num_sessions, round(prompt + result.max_tokens / 2)
    tpot_ms = median(sample.tpot_ms for sample in samples if sample.tpot_ms)
    draft_ms = median(ms for each in result.rounds for ms in each.draft_ms.values() if ms)
    policies: dict[str, Any] = {"drafting": mode.speculation != "off"}
    if isinstance(mode.way, str):
        policies |= {"windows": mode.way}
    else:
        policies |= {"window": mode.way.window, "chunk": mode.way.chunk, "free_run": mode.way.free_run}
    content = {
        "name": "policy-order",
        "workload": closed_loop(num, NUM_ROUNDS * num, samples, answer=result.max_tokens, think_s=0.0),
        "edge": [
            {
                "name": "edge",
                "count": result.num_drafters,
                "times": _scaled(steps, draft_ms / steps.feed_ms(1, context)),
                "link": {"rtt_ms": result.rtt_ms + OWN_RTT_MS},
                "guesses": {"kind": "recorded", "file": str(RECORDINGS / f"smollm2-135m-{result.draft}.jsonl")},
            }
        ],
        "cloud": [{"count": 1, "times": _scaled(passes, tpot_ms / passes.pass_ms(num, num, num * context))}],
        "policies": policies,
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def _scaled(times: PassTimes | StepTimes, scale: float) -> dict[str, Any]:
    return {
        name: [scale * each for each in value] if isinstance(value, tuple) else scale * value
        for name, value in times.model_dump().items()
    }


def _tpot_ms(scenario: Scenario, num_seeds: int) -> float:
    """Mean over answers and seeds."""
    means = []
    for seed in range(1, num_seeds + 1):
        seeded = scenario.model_copy(update={"seed": seed})
        fleet = make_fleet(seeded, ROOT)
        fleet.run()
        means.append(report_of(seeded, fleet).tpot_ms.mean)
    return fmean(means)


def markdown(orders: Sequence[Order], origin: Origin) -> str:
    """The whole report."""
    apart, alike = sum(len(each.apart) for each in orders), sum(len(each.alike) for each in orders)
    names = [mode.name for mode in POLICY_MODES if any(mode.name in each.live for each in orders)]
    rows = [
        "# Order of window policies, simulated and live",
        f"`{origin.command}`, {origin.date}. Speed to target-only: simulated / live. Of {apart} pairs of ways to serve "
        f"that were more than {APART:.0%} apart live, DSD-Sim has {alike} in the same order.",
        f"| RTT, sessions, drafters | {' | '.join(names)} | pairs in the same order |",
        f"| --- |{' --- |' * len(names)} --- |",
    ]
    for each in orders:
        speeds = " | ".join(
            f"{each.simulated[name]:.3f} / {each.live[name]:.3f}" if name in each.live else "" for name in names
        )
        count = f"{len(each.alike)} of {len(each.apart)}"
        rows.append(f"| {each.rtt_ms} ms, {each.num_sessions}, {each.num_drafters} | {speeds} | {count} |")
    return "\n\n".join(rows[:2]) + "\n\n" + "\n".join(rows[2:]) + "\n"


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="With the cells of bench --policies.")] = FOLDER / "policies",
    target: Annotated[Path, typer.Option(help="Profile: how passes grow with tokens.")] = TARGET,
    draft: Annotated[Path, typer.Option(help="Profile: how steps grow with tokens.")] = DRAFT,
) -> None:
    """Simulates what was measured and writes order.md beside it."""
    paths = list(folder.glob("int?-rtt*.json"))
    if not paths:
        raise typer.BadParameter(f"{folder} has no cell of bench --policies", param_hint="--folder")
    try:
        results = [read_result(path) for path in paths]
        results.sort(key=lambda result: (result.num_drafters, result.num_sessions, result.rtt_ms))
        passes, steps = read_profile(target).pass_times, read_profile(draft).step_times
        orders = [order_of(result, passes, steps) for result in results]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    place = folder / "order.md"
    place.write_text(markdown(orders, Origin.here("benchmarks.policies.policy_order")), encoding="utf-8")
    Console(stderr=True).print(f"see {place}", highlight=False)


if __name__ == "__main__":
    app()
