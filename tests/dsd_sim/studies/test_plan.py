"""Plans: each candidate is simulated once, and a choice is the best candidate and not dominated."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dsd_sim.__main__ import app
from dsd_sim.roofline.roofline import Role, Setup, profile_of
from dsd_sim.scenario.table import BadScenario, Table
from dsd_sim.studies import plan as planning
from dsd_sim.studies.plan import (
    Goal,
    Losses,
    PlanFindings,
    PlanRow,
    best_of,
    dominates,
    pareto_of,
    read_plan,
    row_of,
    rows_of,
    write_plan,
)
from dsd_sim.studies.plan_cli import describe_choice
from dsd_sim.studies.plan_plot import plot_plan
from dsd_sim.studies.tables import number
from shared.data.draft_card import CARD, Acceptance, Card
from shared.data.profiles import read_profile
from tests.dsd_sim.reports import a_report

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "scenarios" / "plan").glob("*.toml"))
RECORDING = ROOT / "recordings" / "smollm2-135m-int4.jsonl"
PNG = b"\x89PNG"
PLAN = f"""
name = "test"
transport = "stop-and-wait"
windows = [0, 1, 4]
assumed = ["All of it."]
[workload]
kind = "closed"
num_clients = 4
num_requests = 12
lengths = {{ prompt = 20, answer = {{ low = 10, high = 30 }}, max_tokens = 40 }}
[cloud]
times = {{ base_ms = 20.0, token_ms = 0.5 }}
power_w = 400
cost_per_hour = 2.0
[[edge]]
name = "fast"
count = 10
link = {{ rtt_ms = 5 }}
cost_per_hour = 0.1
[[edge.draft]]
name = "small"
quantisation = "4-bit"
times = {{ step_ms = 2.0 }}
guesses = {{ kind = "independent", rate = 0.6 }}
power_w = 30
[[edge.draft]]
name = "small"
quantisation = "16-bit"
times = {{ step_ms = 6.0 }}
guesses = {{ kind = "independent", rate = 0.7 }}
power_w = 30
[[edge]]
name = "slow"
count = 4
link = {{ rtt_ms = 30 }}
[[edge.draft]]
name = "small"
quantisation = "4-bit"
profile = "drafter.json"
guesses = {{ kind = "recorded", file = "{RECORDING.as_posix()}" }}
power_w = 5
"""
CANDIDATES = [
    ("fast", "", "", 0),
    *(("fast", "small", bits, window) for bits in ("4-bit", "16-bit") for window in (1, 4)),
    ("slow", "", "", 0),
    *(("slow", "small", "4-bit", window) for window in (1, 4)),
]
NUM_CELLS = len(CANDIDATES) - 1  # the cloud alone is the same for both classes


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """Writes a plan and the profile that it names."""
    text = PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "drafter.json").write_text('{"name": "slow", "origin": "assumed", "drafter": {"step_ms": 12.0}}')
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def call(*arguments: object) -> Result:
    """Runs the command in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(app, ["plan", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@dataclass(frozen=True)
class Planned:
    """A plan that was run by its command."""

    path: Path
    folder: Path
    out: str
    found: PlanFindings

    def rows_of(self, device: str) -> list[PlanRow]:
        return [row for row in self.found.rows if row.device == device]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("plan")
    path = written(folder)
    done = call(path, "--objective", "energy", "--out", folder / "out", "--workers", 2)
    assert done.exit_code == 0, done.stderr
    assert f"{NUM_CELLS} of {NUM_CELLS} cells are done" in done.stderr
    found = msgspec.json.decode((folder / "out" / "plan.json").read_bytes(), type=PlanFindings)
    return Planned(path, folder / "out", done.stdout, found)


# --- choosing ---------------------------------------------------------------------------------------------------------

FIGURE = st.sampled_from((0.0, 1.0, 2.0, math.inf)) | st.floats(-1e6, 1e6)
POINTS = st.lists(st.tuples(FIGURE, FIGURE, FIGURE), min_size=1, max_size=30)


@given(POINTS)
def test_a_pareto_set_holds_exactly_the_candidates_that_are_not_dominated(points: list[Losses]) -> None:
    front = pareto_of(points)
    for place, point in enumerate(points):
        above = [other for other in points if is_above(other, point)]
        assert (place in front) == (not above)
        assert place in front or any(is_above(points[each], point) for each in front)


def is_above(one: Losses, other: Losses) -> bool:
    """Whether `one` is lower in at least one figure and higher in none."""
    num_lower = sum(a < b for a, b in zip(one, other, strict=True))
    num_higher = sum(a > b for a, b in zip(one, other, strict=True))
    return num_lower > 0 and num_higher == 0


@given(POINTS, st.sampled_from(Goal))
def test_a_choice_is_the_best_by_its_objective_and_not_dominated(points: list[Losses], goal: Goal) -> None:
    best = best_of(points, goal)
    which = list(Goal).index(goal)
    assert points[best][which] == min(point[which] for point in points)
    assert best in pareto_of(points)


def test_equal_candidates_do_not_dominate_each_other() -> None:
    assert not dominates((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert pareto_of([(1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)]) == {0, 1}


def test_choices_of_a_plan_equal_an_exhaustive_search(planned: Planned) -> None:
    for device in ("fast", "slow"):
        rows = planned.rows_of(device)
        (fastest,) = [row for row in rows if Goal.GOODPUT in row.best_for]
        (cheapest,) = [row for row in rows if Goal.COST in row.best_for]
        (thriftiest,) = [row for row in rows if Goal.ENERGY in row.best_for]
        assert fastest.session_goodput == max(row.session_goodput for row in rows)
        assert cheapest.cost == min(row.cost for row in rows)
        assert thriftiest.energy == min(row.energy for row in rows)
        for row in rows:
            assert row.is_dominated == any(is_above(other.losses, row.losses) for other in rows)
        assert not any(row.is_dominated for row in (fastest, cheapest, thriftiest))


# --- simulating -------------------------------------------------------------------------------------------------------


def test_each_draft_is_tried_with_each_window_and_the_cloud_alone_once(planned: Planned) -> None:
    rows = planned.found.rows
    assert [(row.device, row.draft, row.quantisation, row.window) for row in rows] == CANDIDATES
    assert len({row.cell for row in rows}) == len(list((planned.folder / "cells").iterdir())) == NUM_CELLS


@pytest.mark.parametrize("transport", ["stop-and-wait", "sliding"])
def test_a_candidate_is_simulated_as_the_plan_says(tmp_path: Path, transport: str) -> None:
    plan = read_plan(written(tmp_path, ("stop-and-wait", transport)))
    for candidate in plan.candidates:
        scenario, draft = candidate.cell.scenario, candidate.draft
        assert scenario.policies.drafting == (candidate.window > 0) == bool(draft)
        assert scenario.cloud[0].count == 1
        if draft is None:
            continue
        (edge,) = scenario.edge
        assert (edge.guesses, edge.link) == (draft.guesses, candidate.device.link)
        assert edge.times == (draft.times or read_profile(tmp_path / "drafter.json").step_times)
        assert scenario.policies.choice.window == candidate.window
        assert scenario.policies.choice.is_stop_and_wait == (transport == "stop-and-wait")
        assert scenario.policies.batching == ("fifo" if transport == "stop-and-wait" else "worth")


def test_a_verifier_has_num_clients_sessions_or_one_per_device(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, ("count = 4", "count = 3")))
    for device, num_sessions, num_verifiers in zip(plan.deployment.edge, (4, 3), (3, 1), strict=True):
        assert plan.deployment.num_verifiers(device) == num_verifiers
        for candidate in plan.candidates:
            if candidate.device is device:
                scenario = candidate.cell.scenario
                assert [edge.count for edge in scenario.edge] == [num_sessions] * len(scenario.edge)
                assert getattr(scenario.workload, "num_clients", None) == num_sessions


def test_cost_and_energy_follow_from_the_busy_times(tmp_path: Path) -> None:
    """4 sessions and 4,800 tokens of goodput per 100 s. The verifier runs half of the time at 2 per hour and 400 W. The
    devices cost 0.1 per hour all the time, and draft a quarter of it at 30 W."""
    plan = read_plan(written(tmp_path))
    alone, drafting = plan.candidates[:2]
    report = a_report(goodput=48.0, verifier_utilisation=0.5, drafter_utilisation=0.25)
    row = row_of(plan.deployment, drafting, report)
    assert (row.goodput, row.session_goodput) == (48.0, 12.0)
    assert row.cost == pytest.approx((100 * 0.5 * 2.0 + 4 * 100 * 0.1) / 3600 / 4800 * 1_000_000)
    assert row.energy == pytest.approx((100 * 0.5 * 400 + 4 * 100 * 0.25 * 30) / 4800)
    row = row_of(plan.deployment, alone, report)
    assert row.cost == pytest.approx(100 * 0.5 * 2.0 / 3600 / 4800 * 1_000_000)
    assert row.energy == pytest.approx(100 * 0.5 * 400 / 4800)


def test_a_candidate_without_goodput_is_never_chosen(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    nothing = {candidate.cell.key: a_report(verifier_utilisation=0.5) for candidate in plan.candidates}
    rows = rows_of(plan, nothing)
    assert {row.best_for for row in rows} == {()}
    assert describe_choice(plan.deployment.edge[0], rows, Goal.COST) == "fast: no candidate meets the latency objective"
    write_plan(plan, rows, tmp_path)
    assert {row["cost"] for row in json.loads((tmp_path / "plan.json").read_bytes())["rows"]} == {None}
    assert plot_plan("test", rows, tmp_path).read_bytes().startswith(PNG)
    last = plan.candidates[-1].cell.key
    rows = rows_of(plan, nothing | {last: a_report(goodput=1.0, verifier_utilisation=1.0)})
    assert [row.best_for for row in rows] == [()] * (len(rows) - 1) + [tuple(Goal)]
    assert [row.is_dominated for row in rows if row.device == "slow"] == [True, True, False]


# --- what the command shows and writes --------------------------------------------------------------------------------


def test_the_command_names_the_choices_and_marks_dominated_candidates(planned: Planned) -> None:
    for device, needed in (("fast", "verifiers for 10 devices: 3"), ("slow", "verifiers for 4 devices: 1")):
        rows = planned.rows_of(device)
        (best,) = [row for row in rows if Goal.ENERGY in row.best_for]
        how = f"{best.draft} {best.quantisation}, window {best.window}" if best.draft else "cloud alone"
        (line,) = [line for line in planned.out.splitlines() if line.startswith(f"{device}: ")]
        assert line.startswith(f"{device}: {how}, for the best energy: ")
        assert f"{number(best.energy)} J per token" in line
        assert line.endswith(needed)
    assert planned.out.count("dominated") == sum(row.is_dominated for row in planned.found.rows) > 0
    assert "assumed: All of it." in planned.out


def test_the_csv_has_a_line_for_each_candidate(planned: Planned) -> None:
    with (planned.folder / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["plan", "seed", *(field.name for field in msgspec.structs.fields(PlanRow))]
    assert {(row["plan"], row["seed"]) for row in rows} == {("test", str(planned.found.seed))}
    for line, row in zip(rows, planned.found.rows, strict=True):
        assert float(line["energy"]) == row.energy
        assert line["best_for"].split() == list(row.best_for)
    assert (planned.folder / "plan.png").read_bytes().startswith(PNG)


def test_equal_plans_write_equal_bytes_whatever_the_objective(planned: Planned, tmp_path: Path) -> None:
    before = bytes_in(planned.folder)
    assert set(before) == {"plan.json", "plan.csv", "plan.png"}
    done = call(planned.path, "--objective", "cost", "--out", tmp_path / "again", "--workers", 1)
    assert done.exit_code == 0, done.stderr
    assert "for the best cost" in done.stdout
    assert bytes_in(tmp_path / "again") == before


def test_finished_cells_are_not_computed_again(planned: Planned) -> None:
    before = {path: path.stat().st_mtime_ns for path in (planned.folder / "cells").iterdir()}
    done = call(planned.path, "--out", planned.folder)
    assert done.exit_code == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (planned.folder / "cells").iterdir()} == before
    assert "for the best goodput" in done.stdout


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("windows = [0, 1, 4]", "", "windows: Field required"),
        ("windows = [0, 1, 4]", "windows = []", "windows: "),
        ("windows = [0, 1, 4]", "windows = [1, 80]", "windows.1: Input should be less than or equal to 64"),
        ("windows = [0, 1, 4]", "windows = [1, 1]", "windows: a value is given twice"),
        ("windows = ", "speed = 2\nwindows = ", "speed: Extra inputs are not permitted"),
        ("stop-and-wait", "pigeons", "transport: Input should be 'sliding' or 'stop-and-wait'"),
        ('kind = "closed"', 'kind = "poisson"', "workload.kind: Input should be 'closed'"),
        ("cost_per_hour = 2.0", "", "cloud.cost_per_hour: Field required"),
        ("power_w = 400", "power_w = 0", "cloud.power_w: Input should be greater than or equal to"),
        ("times = { base_ms = 20.0, token_ms = 0.5 }", "", "cloud: either times or profile must be given"),
        ("times = { base_ms = 20.0, token_ms = 0.5 }", 'profile = "drafter.json"',
         "cloud.profile: profile slow has no times of a verifier"),
        ("power_w = 30", "watts = 30", "edge.0.draft.0.power_w: Field required"),
        ("rate = 0.6", "rate = 6.0", "edge.0.draft.0.guesses.rate: Input should be less than or equal to 1"),
        ("step_ms = 2.0", "step_ms = 0.0", "edge.0.draft.0: step_ms must be above 0"),
        ('name = "slow"', 'name = "fast"', "edge: two have the same name"),
        ('quantisation = "16-bit"', 'quantisation = "4-bit"', "edge.0: draft: two have the same name and quantisation"),
        ("drafter.json", "none.json", "edge.1.draft.0.profile: [Errno 2] No such file or directory"),
        (RECORDING.name, "none.jsonl", "edge.1.draft.0.guesses.file: [Errno 2] No such file or directory"),
        ("prompt = 20, answer = { low = 10, high = 30 }", 'file = "none.json"', "workload.lengths.file: [Errno 2]"),
    ],
)  # fmt: skip
def test_a_bad_plan_is_reported_in_one_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, (old, new))
    with pytest.raises(BadScenario) as refusal:
        read_plan(path)
    shown = str(refusal.value)
    assert shown.startswith(f"{path}: ")
    assert message in shown
    assert "\n" not in shown


def test_the_command_ends_with_status_2_and_one_line_on_bad_input(tmp_path: Path) -> None:
    path = written(tmp_path, ("windows = [0, 1, 4]", "windows = [-1]"))
    done = call(path, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"{path}: windows.0: Input should be greater than or equal to 0\n"
    assert not (tmp_path / "out").exists()
    done = call(tmp_path / "none.toml")
    assert (done.exit_code, done.stderr) == (2, f"[Errno 2] No such file or directory: '{tmp_path / 'none.toml'}'\n")


def test_an_error_in_a_worker_is_reported_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, ("power_w = 400", "power_w = 400\nkv_tokens = 16\nprefill_chunk = 8"))
    done = call(path, "--out", tmp_path / "out", "--workers", 1)
    assert (done.exit_code, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"{path}: cloud.kv_tokens: must be at least ")


# --- what ships and what is described ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_plan_that_ships_lists_its_assumptions(path: Path) -> None:
    plan = read_plan(path)
    assert plan.deployment.name == path.stem
    assert plan.deployment.assumed
    assert {candidate.window for candidate in plan.candidates} >= {0, 2, 10}
    assert len(plan.deployment.edge) >= 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_times_in_a_plan_that_ships_are_those_of_the_roofline(path: Path) -> None:
    for device in read_plan(path).deployment.edge:
        for draft in device.draft:
            bits = float(draft.quantisation.removesuffix("-bit"))
            computed = profile_of(Setup(Role.DRAFTER, device.name, draft.name, weight_bits=bits)).step_times
            given = draft.times or read_profile(path.parent / str(draft.profile)).step_times
            assert given == computed, (device.name, draft.name, draft.quantisation)


def test_some_plan_ships() -> None:
    assert SHIPPED


def tables_of_plans() -> Iterator[type[Table]]:
    """The tables that only plans have."""
    for kind in vars(planning).values():
        if isinstance(kind, type) and issubclass(kind, Table) and kind.__module__ == planning.__name__:
            yield kind


def test_every_key_of_a_plan_is_described_with_its_table() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    described = dict(section.split("\n", 1) for section in text.split("\n### ")[1:])
    for kind in tables_of_plans():
        keys = re.findall(r"^\| (`.+?`) \|", re.split(r"\n#", described[kind.__name__])[0], re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", " ".join(keys))) == set(kind.model_fields), kind.__name__


def test_the_json_has_plain_keys_and_values(planned: Planned) -> None:
    found = json.loads((planned.folder / "plan.json").read_bytes())
    assert (found["plan"], found["transport"], found["assumed"]) == ("test", "stop-and-wait", ["All of it."])
    assert {goal for row in found["rows"] for goal in row["best_for"]} == {"goodput", "cost", "energy"}


def test_the_card_of_a_distilled_draft_gives_its_guesses_and_its_step(tmp_path: Path) -> None:
    card = Card(
        target="target",
        target_sha256="",
        layers=[0, 3],
        choice="evenly",
        trials={"evenly": 0.5},
        vocab_size=512,
        coverage=0.99,
        prompts={},
        answer_tokens=1,
        epochs=1.0,
        answers_s=1.0,
        training_s=1.0,
        half_hours=[],
        acceptance=Acceptance(greedy=0.6, sampled=0.5, num_tokens=1, num_answers=1),
        precision="int8",
        step_ms=2.0,
        machine="",
        command="",
        date="",
        versions={},
    )
    (tmp_path / CARD).write_bytes(msgspec.json.encode(card))
    numbers = 'times = { step_ms = 2.0 }\nguesses = { kind = "independent", rate = 0.6 }\n'
    given = [each.cell for each in read_plan(written(tmp_path)).candidates]
    path = written(tmp_path, (numbers, f'card = "{CARD}"\n'))
    assert [each.cell for each in read_plan(path).candidates] == given
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(BadScenario, match=r"edge\.0\.draft\.0\.card: .*is not the card of a draft"):
        read_plan(path)
    with pytest.raises(BadScenario, match="a card excludes times, profile and guesses"):
        read_plan(written(tmp_path, (numbers, f'card = "{CARD}"\n{numbers}')))
