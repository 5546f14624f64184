"""Sweeps: each combination is computed once, kept in a file, and reported as by `run`."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dsd_sim.scenario.scenario import read_toml
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies import cells
from dsd_sim.studies.cells import cell_of
from dsd_sim.studies.plots import label_of, plot_sweep
from dsd_sim.studies.report import FIGURES, TimeStats
from dsd_sim.studies.runner import run_cells
from dsd_sim.studies.sweep import SweepOutcome, capacities_of, crossings_of, groups_of, outcomes_of, read_plan
from dsd_sim.studies.tables import label_capacity, label_crossing, number
from tests.dsd_sim.reports import a_report
from tests.dsd_sim.sweeping import BASE, ROOT, call, command, written
from tests.test_imports import MODULES, all_imports

PNG = b"\x89PNG"


def results_in(folder: Path) -> dict[str, int]:
    """Modification time of each cell's file."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.json")}


class Progress:
    """Calls of a runner's on_progress."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int]] = []

    def __call__(self, num_done: int, num: int) -> None:
        self.all.append((num_done, num))


@dataclass(frozen=True)
class Swept:
    """A sweep that was run by its command."""

    path: Path
    folder: Path
    out: str
    found: dict[str, Any]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    path = written(folder)
    done = call("sweep", path, "--out", folder / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 cells are done" in done.stderr
    return Swept(path, folder / "out", done.stdout, json.loads((folder / "out" / "sweep.json").read_bytes()))


# --- what a sweep writes ----------------------------------------------------------------------------------------------


def test_a_sweep_runs_every_combination_with_every_seed(swept: Swept) -> None:
    settings = [outcome["settings"] for outcome in swept.found["outcomes"]]
    expected = [(window, rtt_ms, seed) for window in (2, 4, 8) for rtt_ms in (10, 30) for seed in (1, 2)]
    assert [tuple(each.values()) for each in settings] == expected
    assert set(swept.found["keys"]) == {"policies.window", "edge.*.link.rtt_ms", "seed"}
    assert len(results_in(swept.folder / "cells")) == 12
    assert swept.found["capacities"] == []


def test_its_csv_has_the_varied_keys_and_all_figures(swept: Swept) -> None:
    with (swept.folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scenario", "policies.window", "edge.*.link.rtt_ms", "seed", *FIGURES]
    assert len(rows) == 12
    for row, outcome in zip(rows, swept.found["outcomes"], strict=True):
        assert float(row["ttft_ms.p90"]) == outcome["report"]["ttft_ms"]["p90"]
        assert int(row["seed"]) == outcome["report"]["seed"] == outcome["settings"]["seed"]


def test_a_legend_names_settings_that_are_tables() -> None:
    label = label_of({"edge.0.guesses": {"kind": "independent", "rate": 0.5}, "policies.chunk": 2})
    assert label.startswith("sliding")
    assert "independent" in label


def test_its_table_and_plots_show_means_over_seeds(swept: Swept) -> None:
    assert "means over 2 seeds" in swept.out
    group = swept.found["outcomes"][:2]
    mean = sum(outcome["report"]["tokens_per_s"] for outcome in group) / 2
    assert "window 2, rtt_ms 10 " in swept.out
    assert number(mean) in swept.out
    plots = {path.name for path in swept.folder.glob("*.png") if path.read_bytes().startswith(PNG)}
    assert plots == {"by-policies.window.png"}, "two round trips are too few to plot over"


def test_a_plot_with_too_many_lines_is_split_by_another_key(tmp_path: Path) -> None:
    sweep = """[sweep]
keys = { "workload.num_clients" = [1, 8], "edge.*.link.rtt_ms" = [0, 5, 10], "policies.window" = WINDOWS }
"""
    for windows, names in (
        ([1, 2, 3, 4], {"by-edge._.link.rtt_ms.png", "by-policies.window.png"}),
        ([1, 2, 3, 4, 5], {"by-edge._.link.rtt_ms-num_clients_1.png", "by-edge._.link.rtt_ms-num_clients_8.png",
                           "by-policies.window.png"}),
    ):  # fmt: skip
        plan = read_plan(written(tmp_path, sweep.replace("WINDOWS", str(windows))))
        outcomes = [SweepOutcome(point.settings, point.cell.key, True, a_report()) for point in plan.points]
        paths = plot_sweep(plan, outcomes, tmp_path)
        assert {path.name for path in paths} == names
        assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_a_cell_holds_the_bytes_that_run_reports(swept: Swept, tmp_path: Path) -> None:
    outcome = swept.found["outcomes"][-1]
    assert outcome["settings"] == {"policies.window": 8, "edge.*.link.rtt_ms": 30, "seed": 2}
    changes = ("rtt_ms = 20", "rtt_ms = 30"), ("rtt_ms = 50", "rtt_ms = 30")
    path = written(tmp_path, "", *changes, ("seed = 3", "seed = 2"))
    done = call("run", path, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    cell = (swept.folder / "cells" / f"{outcome['cell']}.json").read_bytes()
    assert cell == (tmp_path / "out" / "report.json").read_bytes() == done.stdout.encode()
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["scenario", "seed", *FIGURES]
    assert float(row["goodput"]) == outcome["report"]["goodput"]


def test_changes_after_the_end_of_a_run_are_reported(tmp_path: Path) -> None:
    slower = "[[change]]\nat_s = 1.0\npass_slowdown = 2.0\n[policies]"
    sweep = '[sweep]\nkeys = { "change.*.at_s" = [0.5, 900.0] }\nseeds = [3]\n'
    done = call("sweep", written(tmp_path, sweep, ("[policies]", slower)), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs ended before: change at 900 s" in done.stderr


def test_a_sweep_without_seeds_has_three_and_leaves_the_warm_up_out(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, '[sweep]\nkeys = { "policies.window" = [2, 4] }'))
    assert [point.settings["seed"] for point in plan.points] == [3, 4, 5, 3, 4, 5]
    assert {point.cell.warm_up for point in plan.points} == {0.1}
    whole = read_plan(written(tmp_path, "[sweep]\nkeys = { seed = [7, 9] }\nwarm_up = 0.0"))
    assert [point.settings for point in whole.points] == [{"seed": 7}, {"seed": 9}]
    assert not {point.cell.key for point in plan.points} & {point.cell.key for point in whole.points}


# --- once -------------------------------------------------------------------------------------------------------------


def test_finished_cells_are_not_computed_again(swept: Swept) -> None:
    plan, folder = read_plan(swept.path), swept.folder / "cells"
    before, progress = results_in(folder), Progress()
    again = run_cells((point.cell for point in plan.points), folder, 2, progress)
    assert results_in(folder) == before
    assert progress.all == [(12, 12)]
    assert outcomes_of(plan, again) == msgspec.convert(swept.found["outcomes"], list[SweepOutcome])


def test_only_cells_without_a_valid_result_are_computed(swept: Swept) -> None:
    plan, folder = read_plan(swept.path), swept.folder / "cells"
    before, progress = results_in(folder), Progress()
    gone, strange = sorted(before)[:2]
    content = (folder / f"{gone}.json").read_bytes()
    (folder / f"{gone}.json").unlink()
    (folder / f"{strange}.json").write_text('{"scenario": "test"}')
    run_cells((point.cell for point in plan.points), folder, 1, progress)
    changed = {key for key, written_ns in results_in(folder).items() if written_ns != before[key]}
    assert changed == {gone, strange}
    assert progress.all == [(10, 12), (11, 12), (12, 12)]
    assert (folder / f"{gone}.json").read_bytes() == content
    assert not list(folder.glob("*.tmp"))


def test_equal_cells_are_computed_once(tmp_path: Path) -> None:
    values = "{ window = 8 }, { windows = 'static' }, { window = 8, drafting = true }"
    plan = read_plan(written(tmp_path, f"[sweep]\nkeys = {{ policies = [{values}] }}\nseeds = [3]"))
    progress = Progress()
    reports = run_cells((point.cell for point in plan.points), tmp_path / "cells", 2, progress)
    assert len(plan.points) == 3
    assert len(reports) == len(results_in(tmp_path / "cells")) == 1
    assert progress.all == [(0, 1), (1, 1)]


def test_a_key_depends_on_the_scenario_and_the_content_of_its_files(tmp_path: Path) -> None:
    lengths = 'kind = "trace"\nfile = "trace.jsonl"'
    text = BASE.format(sweep="")
    start, end = text.index("kind = "), text.index("[[edge]]")
    path = tmp_path / "scenario.toml"
    path.write_text(text[:start] + lengths + "\n" + text[end:])
    line = {"arrival_ms": 0.0, "prompt_tokens": 10, "target_tokens": 5}
    (tmp_path / "trace.jsonl").write_text(json.dumps(line))
    content = read_toml(path)
    first, again = (cell_of(content, path, {}).key for _ in range(2))
    as_default = cell_of(content, path, {"workload.speed": 1.0}).key
    other = cell_of(content, path, {"workload.speed": 2.0}).key
    (tmp_path / "trace.jsonl").write_text(json.dumps(line | {"target_tokens": 50}))
    changed = cell_of(content, path, {}).key
    for part in ("edge.0", "cloud.0"):  # whatever else names a file
        with pytest.raises(BadScenario, match=rf"{part}.profile: \[Errno 2\]"):
            cell_of(content, path, {f"{part}.times": None, f"{part}.profile": "none.json"})
    assert first == again == as_default
    assert len({first, other, changed}) == 3
    assert re.fullmatch("[0-9a-f]{16}", first)


def test_a_key_depends_on_the_code_that_results_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("awc", "dsd_sim", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    path = written(tmp_path, "")

    def keys() -> tuple[str, str]:
        cells._digest_of_code.cache_clear()
        found = [cell_of(read_toml(path), path, {"policies.windows": name}).key for name in ("static", "ladder")]
        return found[0], found[1]

    before, changes = keys(), {}
    changed = ("dsd_sim/engine/kernel.py", "dsd_sim/studies/tables.py", "awc/policies/static.py")
    for name in (*changed, "awc/policies/wc_dnn.npz"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed")
        after = keys()
        changes[name] = [old != new for old, new in zip(before, after, strict=True)]
        before = after
    cells._digest_of_code.cache_clear()
    assert changes == {
        "dsd_sim/engine/kernel.py": [True, True],
        "dsd_sim/studies/tables.py": [False, False],
        "awc/policies/static.py": [True, True],
        "awc/policies/wc_dnn.npz": [False, True],  # a window that never changes depends on no policy
    }


def test_no_result_depends_on_files_that_keys_leave_out() -> None:
    needed = [MODULES[name] for name in all_imports("dsd_sim.studies.runner") if name in MODULES]
    own = {path.relative_to(ROOT / "dsd_sim").as_posix() for path in needed if path.is_relative_to(ROOT / "dsd_sim")}
    assert own >= {"engine/kernel.py", "scenario/build.py", "studies/report.py"}
    assert not own & cells.PRESENTATION
    assert all((ROOT / "dsd_sim" / name).is_file() for name in cells.PRESENTATION)


def test_an_interrupted_sweep_continues(tmp_path: Path) -> None:
    sweep = '[sweep]\nkeys = { "policies.window" = [2, 3, 4, 5, 6, 7, 8, 9] }\nseeds = [1, 2]'
    path = written(tmp_path, sweep, ("num_requests = 40", "num_requests = 2000"))
    folder = tmp_path / "out" / "cells"
    arguments = command("sweep", path, "--out", tmp_path / "out", "--workers", 1)
    with Interruptible(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_results(folder, process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "stopped; " in err
    assert "Traceback" not in err
    before, progress = results_in(folder), Progress()
    assert 1 <= len(before) < 16
    plan = read_plan(path)
    reports = run_cells((point.cell for point in plan.points), folder, 2, progress)
    after = results_in(folder)
    assert len(reports) == len(after) == 16
    assert progress.all[0] == (len(before), 16)
    assert {key: after[key] for key in before} == before


class Interruptible(subprocess.Popen[str]):
    """A process that handles SIGINT even if this one ignores it, as background processes do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().__init__(*arguments, **options)
        finally:
            signal.signal(signal.SIGINT, before)


def wait_for_results(folder: Path, process: subprocess.Popen[str]) -> None:
    ends_at = time.monotonic() + 240
    while not results_in(folder):
        assert process.poll() is None
        assert time.monotonic() < ends_at
        time.sleep(0.01)


# --- crossover --------------------------------------------------------------------------------------------------------

CROSSED = """[sweep]
keys = { "edge.*.link.rtt_ms" = [0, 10, 30], policies = [{ drafting = false }, { window = 4 }] }
[sweep.crossover]
key = "edge.*.link.rtt_ms"
against = { "policies.drafting" = false }
"""


def crossed(folder: Path, times: dict[float, tuple[float, float]]) -> list[str]:
    """`times`: for each round trip, TPOT of the cloud alone and TPOT with a window of 4."""
    plan = read_plan(written(folder, CROSSED))
    outcomes = []
    for point in plan.points:
        alone, drafted = times[point.settings["edge.*.link.rtt_ms"]]
        mean = drafted if "policies.window" in point.settings else alone
        report = msgspec.structs.replace(a_report(), tpot_ms=TimeStats(mean, 0.0, 0.0, 0.0))
        outcomes.append(SweepOutcome(point.settings, point.cell.key, True, report))
    found = crossings_of(plan, outcomes)
    assert [each.settings for each in found] == [{"policies.window": 4}]
    return [label_crossing(each) for each in found]


def test_a_crossover_is_interpolated_between_two_values(tmp_path: Path) -> None:
    assert crossed(tmp_path, {0: (20, 10), 10: (20, 15), 30: (20, 25)}) == ["20.0"]


def test_equal_figures_count_as_not_worse(tmp_path: Path) -> None:
    assert crossed(tmp_path, {0: (20, 20), 10: (20, 20), 30: (20, 25)}) == ["10.0"]


def test_a_figure_worse_from_the_start_has_no_crossover(tmp_path: Path) -> None:
    assert crossed(tmp_path, {0: (20, 21), 10: (20, 15), 30: (20, 15)}) == ["never"]


def test_a_figure_that_is_never_worse_crosses_above_the_last_value(tmp_path: Path) -> None:
    assert crossed(tmp_path, {0: (20, 10), 10: (20, 15), 30: (20, 20)}) == ["above 30"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('key = "policies.chunk"', "sweep.crossover.policies.chunk is not among the keys of the sweep"),
        ('figure = "speed"', "sweep.crossover.figure: must be one of"),
        ("against = {}", "sweep.crossover.against: "),
    ],
)
def test_a_crossover_with_unknown_keys_or_figures_is_refused(tmp_path: Path, line: str, message: str) -> None:
    kept = [each for each in CROSSED.splitlines() if each.split(" ")[0] != line.split(" ")[0]]
    with pytest.raises(BadScenario, match=re.escape(message)):
        read_plan(written(tmp_path, "\n".join([*kept, line])))


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ('"edge.*.link.rtt_ms" = [0, 10], "policies.drafting" = [true]', "edge.*.link.rtt_ms",
         "sweep.crossover.against: no combination has policies.drafting = False"),
        ("policies = [{ drafting = false }, { window = 4 }]", "policies.window",
         "sweep.crossover.key: policies.window is varied together with policies.drafting"),
        ('"policies.drafting" = [true, false], "policies.windows" = ["static", "ladder"]', "policies.windows",
         "sweep.crossover.key: the values of policies.windows must be numbers"),
    ],
)  # fmt: skip
def test_a_crossover_that_can_not_be_computed_is_refused_before_anything_runs(
    tmp_path: Path, keys: str, key: str, message: str
) -> None:
    table = f"""[sweep]
keys = {{ {keys} }}
[sweep.crossover]
key = "{key}"
against = {{ "policies.drafting" = false }}
"""
    with pytest.raises(BadScenario, match=re.escape(message)):
        read_plan(written(tmp_path, table))


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_capacity_is_the_highest_load_within_the_objective_with_every_seed(tmp_path: Path) -> None:
    sweep = '[sweep]\nkeys = { "workload.num_clients" = [1, 2, 4, 8], "policies.window" = [2, 4, 8] }\nseeds = [1, 2]'
    plan = read_plan(written(tmp_path, sweep))
    failing = {(2, 4, 1), (2, 8, 1), (4, 1, 1), (4, 1, 2)}  # window, clients, seed
    outcomes = []
    for point in plan.points:
        clients, window, seed = point.settings.values()
        outcomes.append(
            SweepOutcome(point.settings, point.cell.key, (window, clients, seed) not in failing, a_report())
        )
    found = capacities_of(plan, outcomes)
    assert [each.settings for each in found] == [{"policies.window": window} for window in (2, 4, 8)]
    assert [label_capacity(each) for each in found] == ["2", "0", "at least 8"]
    assert {each.key for each in found} == {"workload.num_clients"}
    assert [len(group.outcomes) for group in groups_of(outcomes, ("seed",))] == [2] * 12


def test_an_outcome_is_within_the_objective_by_its_90th_percentiles(tmp_path: Path) -> None:
    sweep = '[sweep]\nkeys = { "objective.ttft_ms" = [100], "objective.tpot_ms" = [20] }\nseeds = [1]'
    plan = read_plan(written(tmp_path, sweep))
    key = plan.points[0].cell.key
    for ttft, tpot, is_within in ((100.0, 20.0, True), (101.0, 20.0, False), (100.0, 21.0, False)):
        times = {"ttft_ms": TimeStats(0.0, 0.0, ttft, 999.0), "tpot_ms": TimeStats(0.0, 0.0, tpot, 999.0)}
        report = msgspec.structs.replace(a_report(), **times)
        assert [outcome.is_within for outcome in outcomes_of(plan, {key: report})] == [is_within]
