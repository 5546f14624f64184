"""`make bench`: its plan, findings, report, and the results that it keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from awc.policy import WindowChoice
from benchmarks.harness.cell import ProcessUsage
from benchmarks.harness.cell_plan import StandinPlan
from benchmarks.harness.files import read_result, write_result
from benchmarks.harness.latency import RequestSample
from benchmarks.harness.origin import Origin
from benchmarks.policies import __main__ as command
from benchmarks.policies.__main__ import app, read_findings, selected, unfinished, with_modes, write_report
from benchmarks.policies.findings import find
from benchmarks.policies.measure import (
    CellResult,
    RunSettings,
    complaints_about,
    plan_of,
)
from benchmarks.policies.plan import (
    ADAPTIVE,
    ALL_MODES,
    FEW_MODES,
    NUM_SHARED,
    POLICY_MODES,
    RTTS_MS,
    SLIDING_FREE,
    TARGET_ONLY,
    CellSpec,
    ServingMode,
    full_plan,
    policy_plan,
    quick_plan,
    stop_and_wait_mode,
)
from benchmarks.policies.report import markdown
from benchmarks.policies.rounds import BenchRound
from shared.data.profiles import PassTimes
from tests.benchmarks.sample_recordings import QUICK, profile_json

ORIGIN = Origin("python -m benchmarks.policies", "a machine", "a date", "3")
MAX_TOKENS = 11
DRAFT_MS = 12.0


def sample(tpot_ms: float, ttft_ms: float = 50.0, **changes: object) -> RequestSample:
    made = RequestSample(
        0, 0.0, 0.0, ttft_ms / 1e3, ttft_ms / 1e3 + tpot_ms * (MAX_TOKENS - 1) / 1e3, num_tokens=MAX_TOKENS
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def result(
    tpot_ms: dict[ServingMode, float], num_sessions: int = 1, rtt_ms: int = 30, num_rounds: int = 6
) -> CellResult:
    """Rounds on a machine that slows down, drafter and all modes alike."""
    rounds = []
    for number in range(num_rounds):
        slower = math.exp(number / 3)
        samples = {mode.name: [sample(ms * slower)] * num_sessions for mode, ms in tpot_ms.items()}
        rounds.append(BenchRound(samples, {mode.name: DRAFT_MS * slower for mode in tpot_ms}))
    modes = [mode.name for mode in tpot_ms]
    return CellResult(
        "int8", rtt_ms, num_sessions, modes, MAX_TOKENS, rounds, {"gateway": ProcessUsage(90, 1)}, [], ORIGIN
    )


FAST = {TARGET_ONLY: 40.0, stop_and_wait_mode(1): 35.0, stop_and_wait_mode(4): 20.0, SLIDING_FREE: 16.0, ADAPTIVE: 50.0}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_whole_plan_has_every_cell_once_and_target_only_in_each() -> None:
    plan = full_plan()
    assert len({spec.name for spec in plan}) == len(plan) == 2 * len(RTTS_MS) + 6
    assert all(spec.modes[0] == TARGET_ONLY for spec in (*plan, *quick_plan(), *policy_plan()))
    assert {spec.modes for spec in plan if spec.num_sessions == 1} == {ALL_MODES}
    assert {spec.rtt_ms for spec in plan if spec.num_sessions == NUM_SHARED} == {0, 30, 100}


def test_stop_and_wait_sends_whole_windows_and_never_runs_free() -> None:
    modes = [mode for mode in ALL_MODES if mode.name.startswith("stop-and-wait")]
    assert [mode.control for mode in modes] == [WindowChoice(w, w, free_run=False) for w in (1, 2, 4, 6, 8, 12)]


def test_policy_cells_have_at_least_one_session_per_drafter(tmp_path: Path) -> None:
    assert {spec.num_sessions for spec in policy_plan()} == {1, 4, 16}
    several = policy_plan(num_drafters=4)
    assert {spec.num_sessions for spec in several} == {4, 16}
    assert str(several[0]) == "int8 draft, RTT 0 ms, 4 at once on 4 drafters"
    assert several[0].name == "int8-rtt0-4-on4"
    plan = plan_of(several[0], RunSettings(tmp_path, [], 8, 1.0, seed=1), ("key",))
    assert plan.drafter_names == ["drafter-0", "drafter-1", "drafter-2", "drafter-3"]


def test_a_whole_name_selects_one_cell_and_a_part_all_that_contain_it() -> None:
    plan = policy_plan()
    assert selected(plan, ["int8-rtt0-1"]) == {"int8-rtt0-1"}
    assert selected(plan, ["int8-rtt30"]) == {"int8-rtt30-1", "int8-rtt30-4", "int8-rtt30-16"}
    assert selected(plan, ["int8-rtt0-16", "-4"]) == {"int8-rtt0-16", "int8-rtt0-4", "int8-rtt30-4", "int8-rtt100-4"}


def test_several_drafters_are_for_policies_only() -> None:
    found = CliRunner().invoke(app, ["--drafters", "4"])
    assert found.exit_code == 2
    assert "--drafters needs --policies" in found.output


def test_results_on_several_drafters_have_their_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "REPORTS", tmp_path)
    for drafters, folder in (("1", "policies"), ("4", "policies/on4")):
        (tmp_path / folder).mkdir(parents=True)
        several = replace(result(FAST, num_sessions=4), num_drafters=int(drafters))
        write_result(tmp_path / folder / f"{find(several).name}.json", several)
        assert CliRunner().invoke(app, ["--policies", "--drafters", drafters, "--report"]).exit_code == 0
    found = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("report.md")}
    assert found == {"policies", "policies/on4"}


# --- findings ---------------------------------------------------------------------------------------------------------


def test_ratios_are_of_the_same_prompts_and_above_one_is_faster() -> None:
    finding = find(result(FAST))
    speeds = {mode.mode: mode.speed.value for mode in finding.modes}
    assert speeds[TARGET_ONLY.name] == 1
    assert speeds[SLIDING_FREE.name] == pytest.approx(40 / 16)
    assert speeds[ADAPTIVE.name] == pytest.approx(40 / 50)
    assert finding.best_stop_and_wait == "stop-and-wait 4"
    assert finding.against_best is not None
    assert finding.against_best.value == pytest.approx(20 / 16)
    sliding = finding.of(SLIDING_FREE.name)
    assert sliding is not None
    assert sliding.speed.low == pytest.approx(sliding.speed.high), "the difficulty of prompts must not matter"


def with_final(measured: CellResult, tpot_ms: dict[ServingMode, float], num_rounds: int = 5) -> CellResult:
    """The same, as a race, with rounds of two modes behind it."""
    final = [BenchRound({mode.name: [sample(ms)] for mode, ms in tpot_ms.items()}, {})] * num_rounds
    return replace(measured, rounds=[*measured.rounds, *final], num_race=len(measured.rounds))


@pytest.mark.parametrize("fastest", [TARGET_ONLY, POLICY_MODES[7]], ids=lambda mode: mode.name)
def test_adaptive_is_compared_with_its_rival_in_rounds_of_their_own(fastest: ServingMode) -> None:
    times = {mode: 30.0 + number for number, mode in enumerate(POLICY_MODES)}
    found = find(with_final(result(times | {fastest: 20.0}), {fastest: 20.0, ADAPTIVE: 20.5}))
    assert (found.best_rival, found.num_rounds, found.num_final) == (fastest.name, 6, 5)
    assert found.against_rival is not None
    assert found.against_rival.value == pytest.approx(20 / 20.5)
    mode = found.of(fastest.name)
    assert mode is not None
    assert mode.num_rounds == found.num_rounds
    text = markdown([found], [])
    assert f"adaptive: ≥ 0.97 of {fastest.name}, lower end ≥ 0.93" in text
    assert f"6 rounds. 5 more of adaptive and {fastest.name} alone." in text


def test_a_cell_without_a_race_has_no_rival() -> None:
    assert find(result(FAST)).best_rival is None


def test_figures_of_a_mode_that_left_the_race_are_of_its_own_rounds() -> None:
    left = result({TARGET_ONLY: 40.0, stop_and_wait_mode(4): 20.0})
    for each in left.rounds[3:]:  # the machine slows down: later rounds would show
        del each.samples["stop-and-wait 4"]
    finding = find(left).of("stop-and-wait 4")
    assert finding is not None
    assert finding.num_rounds == 3
    assert finding.speed.value == pytest.approx(2.0)
    assert finding.tpot_ms == pytest.approx(20 * math.exp(1 / 3))


def test_sliding_is_measured_in_draft_steps_per_token() -> None:
    steps = find(result(FAST)).in_steps
    assert steps is not None
    assert steps.value == pytest.approx(16 / DRAFT_MS)
    assert find(result({TARGET_ONLY: 40.0, ADAPTIVE: 50.0})).in_steps is None


def test_throughput_is_that_of_all_sessions_together() -> None:
    finding = find(result({TARGET_ONLY: 95.0}, num_sessions=4, num_rounds=2))
    assert finding.modes[0].tokens_per_s == pytest.approx(8 * MAX_TOKENS / (1.0 + 0.05 + 0.95 * math.exp(1 / 3)))


def test_a_cell_in_which_requests_failed_has_no_figures() -> None:
    failed = result(FAST)
    failed.rounds[0].samples[ADAPTIVE.name][0] = sample(10.0, status="503", num_tokens=0)
    assert find(failed).modes == []
    assert complaints_about(failed.rounds)[0] == "round 0, adaptive: 503"


def test_answers_whose_length_depends_on_the_mode_are_a_complaint() -> None:
    uneven = result(FAST)
    assert complaints_about(uneven.rounds) == []
    uneven.rounds[1].samples[ADAPTIVE.name][0] = sample(10.0, num_tokens=MAX_TOKENS + 1)
    assert "differ in length" in complaints_about(uneven.rounds)[0]


# --- results and report -----------------------------------------------------------------------------------------------


def test_a_finished_cell_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    spec = CellSpec("int8", 30, 1, tuple(FAST))
    settings = RunSettings(Path("m"), ["prompt"], MAX_TOKENS, seconds=0.0, seed=1)
    finished = replace(result(FAST), inputs=settings.inputs)
    assert unfinished([spec], tmp_path, settings) == [spec]
    write_result(tmp_path / f"{spec.name}.json", finished)
    assert read_result(tmp_path / f"{spec.name}.json", CellResult) == finished
    assert unfinished([spec], tmp_path, settings) == []
    assert unfinished([replace(spec, modes=FEW_MODES)], tmp_path, settings) != []
    assert unfinished([spec], tmp_path, replace(settings, max_tokens=MAX_TOKENS + 1)) == [spec]
    assert unfinished([spec], tmp_path, replace(settings, prompts=["another"])) == [spec]
    assert unfinished([spec], tmp_path, replace(settings, seed=2)) == [spec]
    write_result(tmp_path / f"{spec.name}.json", replace(finished, inputs="other code"))
    assert unfinished([spec], tmp_path, settings) == [spec]
    write_result(tmp_path / f"{spec.name}.json", replace(finished, complaints=["pass failed"]))
    assert unfinished([spec], tmp_path, settings) == [spec], "void figures are measured again"


def test_a_cell_with_another_stand_in_is_measured_again(tmp_path: Path) -> None:
    spec = CellSpec("int8", 30, 1, tuple(FAST))
    (tmp_path / "profile.json").write_bytes(profile_json(QUICK))
    standin = StandinPlan("paced", tmp_path / "profile.json")
    settings = RunSettings(Path("m"), ["prompt"], MAX_TOKENS, seconds=0.0, seed=1, standin=standin)
    finished = replace(result(FAST), standin=settings.kind_of_models, inputs=settings.inputs)
    write_result(tmp_path / f"{spec.name}.json", finished)
    assert unfinished([spec], tmp_path, settings) == []
    assert unfinished([spec], tmp_path, replace(settings, standin=None)) == [spec]
    slower = QUICK.model_copy(update={"verifier": PassTimes(base_ms=3.0)})
    (tmp_path / "profile.json").write_bytes(profile_json(slower))
    assert unfinished([spec], tmp_path, replace(settings)) == [spec], "the same name with other times"


def test_an_invalid_result_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "int8-rtt30-1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"int8-rtt30-1\.json is not a valid CellResult"):
        read_result(tmp_path / "int8-rtt30-1.json", CellResult)


def test_the_report_lists_met_and_unmet_requirements() -> None:
    text = markdown([find(result(FAST))], ["speed.png"])
    assert "| adaptive: never slower than target-only | int8 draft, RTT 30 ms, one session | 0.800" in text
    assert text.count("**no**") == 1
    where = "int8 draft, RTT 30 ms, one session"
    assert f"| sliding against stop-and-wait 4: ≥ 1.2× | {where} | 1.250 (1.250 … 1.250) | yes |" in text
    assert f"| sliding: ≤ 1.5 draft steps per token | {where} | 1.333 (1.333 … 1.333) | yes |" in text
    assert "![speed](speed.png)" in text
    assert ORIGIN.command in text
    assert ORIGIN.machine in text


OPEN = "**open**: too few rounds"


@pytest.mark.parametrize(
    ("what", "even", "odd", "answer"),
    [
        ("never slower", sample(41.0), sample(41.0), "yes"),
        ("never slower", sample(42.0), sample(42.0), "**no**"),
        ("never slower", sample(36.0), sample(50.0), OPEN),
        ("never slower", sample(36.0), sample(45.0), OPEN),  # the value would do, the lower end does not
        ("TTFT", sample(50.0, ttft_ms=54.0), sample(50.0, ttft_ms=54.0), "yes"),
        ("TTFT", sample(50.0, ttft_ms=60.0), sample(50.0, ttft_ms=60.0), "**no**"),
        ("TTFT", sample(50.0, ttft_ms=40.0), sample(50.0, ttft_ms=80.0), OPEN),
    ],
)
def test_a_limit_missed_by_chance_is_open_and_one_always_missed_is_not_met(
    what: str, even: RequestSample, odd: RequestSample, answer: str
) -> None:
    measured = result(FAST)
    for number, each in enumerate(measured.rounds):
        each.samples[TARGET_ONLY.name][0] = sample(40.0)
        each.samples[ADAPTIVE.name][0] = (even, odd)[number % 2]
    (row,) = [line for line in markdown([find(measured)], []).splitlines() if f"adaptive: {what}" in line]
    assert row.endswith(f"| {answer} |")


def test_a_report_names_stand_ins_in_every_title() -> None:
    text = markdown([find(replace(result(FAST), standin="stand-in: paced quick"))], [])
    assert text.count("int8 draft (stand-in: paced quick), RTT 30 ms") == text.count("int8 draft") > 1
    assert "≥ 1.3×" in text, "the requirement for stand-ins of large models"


def test_void_cells_are_marked_and_check_no_requirement() -> None:
    void = replace(result(FAST), complaints=["verifier-0: pass failed"])
    text = markdown([find(void)], [])
    assert "**Void**: verifier-0: pass failed" in text
    assert "never slower" not in text


def test_report_and_plots_are_of_the_measured_cells(tmp_path: Path) -> None:
    plan = [CellSpec("int8", rtt_ms, 1, tuple(FAST)) for rtt_ms in (0, 30, 100)]
    for spec in plan[:2]:
        write_result(tmp_path / f"{spec.name}.json", result(FAST, rtt_ms=spec.rtt_ms))
    path = write_report(plan, tmp_path)
    assert "RTT 0 ms" in path.read_text()
    assert "RTT 100 ms" not in path.read_text()
    assert (tmp_path / "speed-int8-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_one_cell_keeps_the_findings_of_the_others_with_their_commands(tmp_path: Path) -> None:
    plan = [CellSpec("int8", rtt_ms, 1, tuple(FAST)) for rtt_ms in (0, 30)]
    for spec in plan:
        write_result(tmp_path / f"{spec.name}.json", result(FAST, rtt_ms=spec.rtt_ms))
    write_report(plan, tmp_path)
    (tmp_path / f"{plan[0].name}.json").unlink()
    later = replace(result(FAST, num_rounds=9), origin=replace(ORIGIN, command="another"))
    write_result(tmp_path / f"{plan[1].name}.json", later)
    text = write_report(plan, tmp_path).read_text()
    assert f"* `{ORIGIN.command}`, a date, a machine, Python 3: int8-rtt0-1\n" in text
    assert "* `another`, a date, a machine, Python 3: int8-rtt30-1\n" in text
    assert {name: each.num_rounds for name, each in read_findings(tmp_path).items()} == {
        "int8-rtt0-1": 6,
        "int8-rtt30-1": 9,
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--report"], "holds no measured cell"),
        (["--only", "int9"], "--only int9 matches no cell"),
        (["--only", "int8-rtt0-1", "--mode", "fast"], "--mode fast is not in int8-rtt0-1; modes: target-only, stop"),
    ],
)
def test_options_that_select_nothing_are_refused_and_write_nothing(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    done = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert complaint in done.output
    assert not list(tmp_path.iterdir())


def test_partial_cells_never_replace_whole_ones() -> None:
    done = CliRunner().invoke(app, ["--mode", "adaptive"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "--mode needs --folder" in done.output
    (spec,) = [each for each in full_plan() if each.name == "int4-rtt200-1"]
    assert with_modes(spec, ["adaptive"]).modes == (TARGET_ONLY, ADAPTIVE)
    assert not with_modes(policy_plan()[0], ["pipeline"]).is_race, "adaptive may be missing"


def test_findings_of_an_old_format_are_named_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "findings.json").write_text('[{"name": "old"}]')
    done = CliRunner().invoke(app, ["--quick", "--folder", str(tmp_path)], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert "findings.json" in done.output
