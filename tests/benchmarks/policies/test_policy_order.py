"""The ranking of policies in the simulator is compared with the live one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice
from benchmarks.harness.files import write_result
from benchmarks.harness.latency import RequestSample
from benchmarks.harness.origin import Origin
from benchmarks.policies.measure import CellResult
from benchmarks.policies.plan import ADAPTIVE, LIVE_POLICIES, POLICY_MODES, TARGET_ONLY, ServingMode
from benchmarks.policies.policy_order import PolicyOrder, app, markdown, order_of, scenario_of
from benchmarks.policies.rounds import BenchRound
from shared.data.profiles import MachineTimes, PassTimes, Profile, StepTimes

PROFILE = Profile(
    name="pair",
    origin="a test",
    verifier=PassTimes(base_ms=40.0, token_ms=0.1, above_ms=(0.2, 0.0, 0.0)),
    drafter=StepTimes(step_ms=5.0, fed_ms=0.5),
    machine=MachineTimes(message_ms=0.5, pass_slowdown=1.1),
)
ORIGIN = Origin("python -m benchmarks.policies.policy_order", "a machine", "2026-11-25", "3.11")


def order(live: dict[str, float], simulated: dict[str, float]) -> PolicyOrder:
    apart = [(a, b) for a in live for b in live if live[a] > 1.03 * live[b]]
    return PolicyOrder(30, 1, 1, live, simulated, apart)


def cell(tpot_ms: dict[str, float], draft_ms: float = 10.0, complaints: tuple[str, ...] = ()) -> CellResult:
    """Two rounds of one session: 17 tokens after a prompt of 40."""

    def sample(each: float) -> RequestSample:
        return RequestSample(0, 0.0, 0.0, 0.1, 0.1 + 16 * each / 1e3, num_tokens=17, num_prompt_tokens=40)

    rounds = [
        BenchRound({mode: [sample(each)] for mode, each in tpot_ms.items()}, dict.fromkeys(tpot_ms, draft_ms))
    ] * 2
    return CellResult("int8", 0, 1, list(tpot_ms), 17, rounds, {}, list(complaints), ORIGIN)


def mode(name: str) -> ServingMode:
    return next(mode for mode in POLICY_MODES if mode.name == name)


def test_pairs_that_are_in_another_order_in_the_simulation_do_not_count() -> None:
    found = order({"a": 1.0, "b": 1.02, "c": 1.5}, {"a": 1.0, "b": 0.5, "c": 0.8})
    assert found.alike == [("c", "b")], "c is slower than a in the simulation"


def test_only_modes_with_clearly_different_live_speeds_are_compared() -> None:
    found = order_of(cell({"target-only": 40.0, "window 4": 20.0, "window 8": 19.6}), PROFILE, num_seeds=1)
    assert found.apart == [("window 4", "target-only"), ("window 8", "target-only")]


def test_modes_of_a_race_are_compared_in_the_rounds_that_both_have() -> None:
    first = cell({"target-only": 40.0, "window 2": 20.0, "window 8": 19.6, ADAPTIVE.name: 19.6})
    slower = cell({"target-only": 80.0, "window 8": 30.0, ADAPTIVE.name: 30.0})
    final = cell({"window 8": 1.0, ADAPTIVE.name: 30.0})
    raced = replace(first, rounds=[*first.rounds, *slower.rounds, *final.rounds], num_race=4)
    found = order_of(raced, PROFILE, num_seeds=1)
    assert found.apart == [(name, "target-only") for name in ("window 2", "window 8", ADAPTIVE.name)]


@pytest.mark.parametrize("simulated", [1.0, 1.0005])
def test_modes_that_are_equal_in_the_simulation_have_no_order(simulated: float) -> None:
    assert order({"a": 1.0, "b": 1.5}, {"a": 1.0, "b": simulated}).alike == []


def test_the_simulator_gets_the_profile_and_no_speed_of_the_cell() -> None:
    scenario = scenario_of(cell({"target-only": 40.0, "window 8": 30.0}), mode("window 8"), PROFILE)
    assert (scenario.cloud[0].times, scenario.edge[0].times) == (PROFILE.verifier, PROFILE.drafter)
    assert scenario.machine is not None
    assert scenario.machine.times == PROFILE.machine
    slower = cell({"target-only": 90.0, "window 8": 20.0})
    assert scenario_of(slower, mode("window 8"), PROFILE) == scenario


def test_a_mode_becomes_the_policies_of_its_scenario() -> None:
    live = cell({"target-only": 40.0})
    assert not scenario_of(live, TARGET_ONLY, PROFILE).policies.drafting
    assert scenario_of(live, mode("window 2"), PROFILE).policies.choice.window == 2


def test_with_a_fast_drafter_long_windows_are_faster_in_the_simulation_too() -> None:
    found = order_of(cell({"target-only": 40.0, "window 2": 25.0, "window 8": 15.0}), PROFILE, num_seeds=1)
    assert found.live == pytest.approx({"target-only": 1.0, "window 2": 1.6, "window 8": 40 / 15})
    assert found.simulated["target-only"] == 1.0
    assert found.alike == found.apart
    assert len(found.apart) == 3
    assert "DSD-Sim has 3 of the 3 pairs" in markdown([found], ORIGIN)
    assert "| 0 ms, 1, 1 | 1.000 / 1.000 |" in markdown([found], ORIGIN)


def test_a_void_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="RTT 0 ms, 1 at once: void: it failed"):
        order_of(cell({"target-only": 40.0}, complaints=("it failed",)), PROFILE)


def test_policies_by_name_decide_in_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIVE_POLICIES, "pipeline", lambda: StaticPolicy(WindowChoice(0, 1, free_run=True)))
    live = cell({"target-only": 40.0, "pipeline": 20.0, ADAPTIVE.name: 20.0})
    simulated = order_of(live, PROFILE, num_seeds=1).simulated
    assert simulated["pipeline"] == pytest.approx(1.0, abs=0.1), "it drafts until the first decision"
    assert simulated[ADAPTIVE.name] > 1.5


def test_a_cell_of_another_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="not measured with --policies as it is now: it has the mode stand-still"):
        order_of(cell({"target-only": 40.0, "stand-still": 40.0}), PROFILE)


def test_the_command_writes_the_order_beside_the_cells(tmp_path: Path) -> None:
    write_result(tmp_path / "int8-rtt0-1.json", cell({"target-only": 40.0, "window 8": 20.0}))
    assert CliRunner().invoke(app, ["--folder", str(tmp_path)]).exit_code == 0
    assert "1 of 1" in (tmp_path / "order.md").read_text()


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    write_result(tmp_path / "int8-rtt0-1.json", cell({"target-only": 40.0}))
    found = CliRunner().invoke(app, ["--folder", str(tmp_path), "--profile", "nowhere.json"])
    assert found.exit_code == 2
    assert "nowhere.json" in found.output


def test_a_folder_without_cells_is_named(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["--folder", str(tmp_path)])
    assert found.exit_code == 2
    assert "holds no cell of benchmarks.policies --policies" in " ".join(found.output.replace("│", " ").split())
