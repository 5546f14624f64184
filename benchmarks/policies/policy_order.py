"""Whether window policies rank alike in DSD-Sim and live.

Run `python -m benchmarks.policies --policies` first, then `python -m benchmarks.policies.policy_order`.

Invariant: the simulator gets the load, the link, the TPOT of target-only and the draft step time of a live cell, and no
speed of a policy. Two modes rank alike if the one that is faster live by more than APART is faster in the simulation by
more than EQUAL.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.files import REPORTS, ROOT, read_result
from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.origin import Origin
from benchmarks.harness.simulation import closed_loop_workload, simulate_seeds
from benchmarks.policies.findings import find
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import POLICY_MODES, TARGET_ONLY, ServingMode
from dsd_sim.scenario.scenario import Scenario
from shared.data.profiles import PassTimes, StepTimes, read_profile

RECORDINGS = ROOT / "recordings"
TARGET, DRAFT = (ROOT / "profiles" / f"xeon-smollm2-135m-{name}.json" for name in ("target", "draft-int8"))
APART = 0.03  # least relative difference of live speeds that are compared
EQUAL = 0.001  # largest relative difference of simulated speeds that count as equal
LOCAL_RTT_MS = 2.0  # between services on one machine, as drafters measure it
NUM_SEEDS = 5
NUM_ROUNDS = 20  # answers per session

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class PolicyOrder:
    """Speeds to target-only of one cell, by mode."""

    rtt_ms: int
    num_sessions: int
    num_drafters: int
    live: dict[str, float]
    simulated: dict[str, float]

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Pairs of modes that differ live, the faster one first."""
        return [(a, b) for a, b in itertools.permutations(self.live, 2) if self.live[a] > (1 + APART) * self.live[b]]

    @property
    def alike(self) -> list[tuple[str, str]]:
        """The pairs of `apart` in the same order in the simulation."""
        return [(a, b) for a, b in self.apart if self.simulated[a] > (1 + EQUAL) * self.simulated[b]]


def order_of(result: CellResult, passes: PassTimes, steps: StepTimes, num_seeds: int = NUM_SEEDS) -> PolicyOrder:
    """Simulates a live cell with `passes` and `steps`, scaled to its own times. Raises ValueError for a void cell."""
    finding, named = find(result), {mode.name: mode for mode in POLICY_MODES}
    cell = f"cell {result.draft}, RTT {result.rtt_ms} ms, {result.num_sessions} at once"
    if result.complaints or not finding.modes:
        raise ValueError(f"{cell}: void: {(*result.complaints, 'failed answers')[0]}")
    if strange := set(result.modes) - set(named):
        raise ValueError(f"{cell}: not measured with --policies: it has the mode {', '.join(sorted(strange))}")
    if not any(ms for each in result.rounds for ms in each.draft_ms.values()):
        raise ValueError(f"{cell}: has no draft step time")
    times = {
        name: _tpot_ms(scenario_of(result, named[name], passes, steps), num_seeds)
        for name in (found.mode for found in finding.modes)
    }
    return PolicyOrder(
        result.rtt_ms,
        result.num_sessions,
        result.num_drafters,
        live={found.mode: found.speed.value for found in finding.modes},
        simulated={name: times[TARGET_ONLY.name] / tpot_ms for name, tpot_ms in times.items()},
    )


def scenario_of(result: CellResult, mode: ServingMode, passes: PassTimes, steps: StepTimes) -> Scenario:
    """One client for each session, and the times of the machine that measured the cell."""
    samples = [sample for each in result.rounds for sample in each.samples[TARGET_ONLY.name]]
    prompt = fmean(sample.num_prompt_tokens for sample in samples)
    num, context = result.num_sessions, round(prompt + result.max_tokens / 2)
    tpot_ms = median(sample.tpot_ms for sample in samples if sample.tpot_ms)
    draft_ms = median(ms for each in result.rounds for ms in each.draft_ms.values() if ms)
    policies: dict[str, Any] = {"drafting": mode.speculation != "off"}
    if isinstance(mode.control, str):
        policies |= {"windows": mode.control}
    else:
        control = mode.control
        policies |= {"window": control.window, "chunk": control.chunk, "free_run": control.free_run}
    content = {
        "name": "policy-order",
        "workload": closed_loop_workload(num, NUM_ROUNDS * num, samples, result.max_tokens, think_s=0.0),
        "edge": [
            {
                "name": "edge",
                "count": result.num_drafters,
                "times": _scaled(steps, draft_ms / steps.guess_ms(ceil(num / result.num_drafters), context)),
                "link": {"rtt_ms": result.rtt_ms + LOCAL_RTT_MS},
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
        for name, value in times.model_dump(exclude_none=True).items()
    }


def _tpot_ms(scenario: Scenario, num_seeds: int) -> float:
    """Mean over answers and seeds."""
    return fmean(report.tpot_ms.mean for report in simulate_seeds(scenario, ROOT, num_seeds))


def markdown(orders: Sequence[PolicyOrder], origin: Origin) -> str:
    """The report."""
    apart, alike = sum(len(each.apart) for each in orders), sum(len(each.alike) for each in orders)
    names = [mode.name for mode in POLICY_MODES if any(mode.name in each.live for each in orders)]
    about = (
        f"`{origin.command}`, {origin.date}. Speed to target-only: simulated / live. DSD-Sim has {alike} of the "
        f"{apart} pairs of modes that differ by more than {APART:.0%} live in the same order."
    )
    rows = []
    for each in orders:
        speeds = [f"{each.simulated[name]:.3f} / {each.live[name]:.3f}" if name in each.live else "" for name in names]
        place = f"{each.rtt_ms} ms, {each.num_sessions}, {each.num_drafters}"
        rows.append((place, *speeds, f"{len(each.alike)} of {len(each.apart)}"))
    table = markdown_table(("RTT, sessions, drafters", *names, "pairs in the same order"), rows)
    return f"# Ranking of window policies, simulated and live\n\n{about}\n\n{table}\n"


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="Folder with cells of benchmarks.policies --policies.")] = REPORTS
    / "policies",
    target: Annotated[Path, typer.Option(help="Profile: how passes scale with tokens.")] = TARGET,
    draft: Annotated[Path, typer.Option(help="Profile: how draft steps scale with tokens.")] = DRAFT,
) -> None:
    """Simulates the measured cells and writes order.md beside them."""
    paths = list(folder.glob("int?-rtt*.json"))
    if not paths:
        raise typer.BadParameter(f"{folder} holds no cell of benchmarks.policies --policies", param_hint="--folder")
    try:
        results = [read_result(path, CellResult) for path in paths]
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
