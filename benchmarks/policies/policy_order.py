"""Whether window policies rank alike in DSD-Sim and live.

Run `python -m benchmarks.policies --policies` first, then `python -m benchmarks.policies.policy_order`.

Invariant: the simulator gets the load and the link of a live cell, and the calibrated profile of its pair and machine;
no speed of a policy. Two modes rank alike if the one that is faster live by more than APART is faster in the simulation
by more than EQUAL. Live, two modes are compared in the rounds of a race that both have.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.files import REPORTS, ROOT, read_result
from benchmarks.harness.markdown import markdown_table
from benchmarks.harness.origin import Origin
from benchmarks.harness.simulation import closed_loop_workload, simulate_seeds
from benchmarks.policies.findings import find
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import LIVE_POLICIES, POLICY_MODES, TARGET_ONLY, ServingMode
from benchmarks.policies.rounds import of_modes, speed_ratio
from dsd_sim.scenario.scenario import Scenario
from shared.data.profiles import Profile, read_profile

RECORDINGS = ROOT / "recordings"
PROFILE = ROOT / "docs" / "reports" / "validation" / "profiles" / "torch-int8.json"
APART = 0.03  # least relative difference of live speeds that are compared
EQUAL = 0.001  # largest relative difference of simulated speeds that count as equal
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
    apart: list[tuple[str, str]]  # pairs of modes that differ live, the faster one first

    @property
    def alike(self) -> list[tuple[str, str]]:
        """The pairs of `apart` in the same order in the simulation."""
        return [(a, b) for a, b in self.apart if self.simulated[a] > (1 + EQUAL) * self.simulated[b]]


def order_of(result: CellResult, profile: Profile, num_seeds: int = NUM_SEEDS) -> PolicyOrder:
    """Simulates a live cell of the profile's pair and machine. Raises ValueError for a void cell."""
    finding, named = find(result), {mode.name: mode for mode in POLICY_MODES}
    cell = f"cell {result.draft}, RTT {result.rtt_ms} ms, {result.num_sessions} at once"
    if result.complaints or not finding.modes:
        raise ValueError(f"{cell}: void: {(*result.complaints, 'failed answers')[0]}")
    if strange := set(result.modes) - set(named):
        raise ValueError(
            f"{cell}: not measured with --policies as it is now: it has the mode {', '.join(sorted(strange))}"
        )
    race = result.rounds[: result.num_race]
    times = {found.mode: _tpot_ms(result, named[found.mode], profile, num_seeds) for found in finding.modes}
    return PolicyOrder(
        result.rtt_ms,
        result.num_sessions,
        result.num_drafters,
        live={found.mode: found.speed.value for found in finding.modes},
        simulated={name: times[TARGET_ONLY.name] / tpot_ms for name, tpot_ms in times.items()},
        apart=[(a, b) for a, b in itertools.permutations(times, 2) if speed_ratio(race, a, b) > 1 + APART],
    )


def scenario_of(result: CellResult, mode: ServingMode, profile: Profile) -> Scenario:
    """One client for each session. A policy by name must replace the scenario's own."""
    rounds = of_modes(result.rounds, TARGET_ONLY.name)
    samples = [sample for each in rounds for sample in each.samples[TARGET_ONLY.name]]
    num, control = result.num_sessions, mode.control
    policies: dict[str, Any] = {"drafting": mode.speculation != "off"}
    if not isinstance(control, str):
        policies |= {"window": control.window, "chunk": control.chunk, "free_run": control.free_run}
    content = {
        "name": "policy-order",
        "workload": closed_loop_workload(num, NUM_ROUNDS * num, samples, result.max_tokens, think_s=0.0),
        "edge": [
            {
                "name": "edge",
                "count": result.num_drafters,
                "times": profile.step_times.model_dump(),
                "link": {"rtt_ms": result.rtt_ms},
                "guesses": {"kind": "recorded", "file": str(RECORDINGS / f"smollm2-135m-{result.draft}.jsonl")},
            }
        ],
        "cloud": [{"count": 1, "times": profile.pass_times.model_dump()}],
        "machine": {"times": profile.machine_times.model_dump()},
        "policies": policies,
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def _tpot_ms(result: CellResult, mode: ServingMode, profile: Profile, num_seeds: int) -> float:
    """Mean over answers and seeds."""
    make_policy = LIVE_POLICIES[mode.control] if isinstance(mode.control, str) else None
    reports = simulate_seeds(scenario_of(result, mode, profile), ROOT, num_seeds, make_policy)
    return fmean(report.tpot_ms.mean for report in reports)


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
    profile: Annotated[
        Path, typer.Option(help="Calibrated profile of the cells' pair and machine (benchmarks.validation calibrate).")
    ] = PROFILE,
) -> None:
    """Simulates the measured cells and writes order.md beside them."""
    paths = list(folder.glob("int?-rtt*.json"))
    if not paths:
        raise typer.BadParameter(f"{folder} holds no cell of benchmarks.policies --policies", param_hint="--folder")
    try:
        results = [read_result(path, CellResult) for path in paths]
        results.sort(key=lambda result: (result.num_drafters, result.num_sessions, result.rtt_ms))
        times = read_profile(profile)
        orders = [order_of(result, times) for result in results]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    place = folder / "order.md"
    place.write_text(markdown(orders, Origin.here("benchmarks.policies.policy_order")), encoding="utf-8")
    Console(stderr=True).print(f"see {place}", highlight=False)


if __name__ == "__main__":
    app()
