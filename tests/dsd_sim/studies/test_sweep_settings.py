"""Settings of a sweep: keys, tables, lists, labels and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import settings_of
from dsd_sim.studies.runner import run_cells
from dsd_sim.studies.sweep import read_plan
from dsd_sim.studies.tables import brief, number
from tests.dsd_sim.sweeping import REPEATED, ROOT, call, written


def test_a_star_sets_all_entries_of_a_list_and_a_number_one(tmp_path: Path) -> None:
    sweep = '[sweep]\nkeys = { "edge.*.link.rtt_ms" = [7], "edge.1.count" = [5], "objective.ttft_ms" = [50] }'
    point, *_ = read_plan(written(tmp_path, sweep)).points
    scenario = point.cell.scenario
    assert [(edge.link.rtt_ms, edge.count) for edge in scenario.edge] == [(7.0, 2), (7.0, 5)]
    assert scenario.objective.ttft_ms == 50.0
    assert scenario.policies.window == 8


def test_a_table_sets_each_of_its_keys_unless_it_has_a_kind() -> None:
    assert settings_of("policies", {"window": 0, "chunk": 1}) == {"policies.window": 0, "policies.chunk": 1}
    assert settings_of("a", {"b": {"c": [1, 2]}, "d": True}) == {"a.b.c": [1, 2], "a.d": True}
    guesses = {"kind": "independent", "rate": 0.5}
    assert settings_of("edge.0.guesses", guesses) == {"edge.0.guesses": guesses}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (REPEATED, "", "sweep: the table with the keys to vary is missing"),
        (REPEATED, "[sweep]\n", "sweep.keys: Field required"),
        (REPEATED, "[sweep]\nkeys = {}", "sweep.keys: Dictionary should have at least 1 item"),
        ("[2, 4, 8]", "[]", "sweep.keys.policies.window: "),
        ("[2, 4, 8]", "2", "sweep.keys.policies.window: "),
        ("[1, 2]", "[1, -2]", "sweep.seeds.1: Input should be greater than or equal to 0"),
        ("seeds =", "repeats =", "sweep.repeats: Extra inputs are not permitted"),
        ("policies.window", "policies.wind", "policies.wind: Extra inputs are not permitted (with policies.wind = 2"),
        ("[2, 4, 8]", "[2, 80]", "window: Input should be less than or equal to 64 (with policies.window = 80"),
        ("edge.*", "edge.2", "edge.2.link.rtt_ms: '2' must be the number of an entry, 0 to 1, or *"),
        ("edge.*", "edge.near", "edge.near.link.rtt_ms: 'near' must be the number of an entry"),
        ('"edge.*.link.rtt_ms" = [10, 30]', "policies = [{ window = 2 }]", "policies.window is varied twice"),
        ("[10, 30]", '[10, 30], "edge.0.link.rtt_ms" = [5]', "edge.0.link.rtt_ms, is varied twice"),
        ("[10, 30]", '[10, 30], "edge.0.link" = [{ kind = "x" }]', "as a part of edge.0.link, is varied twice"),
        ("[10, 30]", "[10, 10]", "sweep: edge.*.link.rtt_ms has a value twice"),
        ("[1, 2]", "[1, 1]", "sweep: seed has a value twice"),
        ('"edge.*.link.rtt_ms" = [10, 30]', "seed = [2]", "sweep.keys: seed is varied twice"),
        ('"edge.*.link.rtt_ms" = [10, 30]', '"edge.0.guesses" = [{ kind = "recorded", file = "none.jsonl" }]',
         "edge.0.guesses.file: [Errno 2] No such file or directory"),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_reported_in_one_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, REPEATED, (old, new))
    with pytest.raises(BadScenario) as refusal:
        read_plan(path)
    shown = str(refusal.value)
    assert shown.startswith(f"{path}: ")
    assert message in shown
    assert "\n" not in shown


def test_the_commands_end_with_status_2_on_bad_input(tmp_path: Path) -> None:
    path = written(tmp_path)
    for arguments, message in (
        (("run", path), f"{path}: sweep: `run` takes no file with this table; use `sweep`\n"),
        (("sweep", tmp_path / "none.toml"), f"[Errno 2] No such file or directory: '{tmp_path / 'none.toml'}'\n"),
    ):
        done = call(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_an_error_in_a_worker_is_reported_with_file_and_settings(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, '[sweep]\nkeys = { "cloud.0.kv_tokens" = [64] }'))
    with pytest.raises(BadScenario) as refusal:
        run_cells((point.cell for point in plan.points), tmp_path / "cells", 1, lambda num_done, num: None)
    shown = str(refusal.value)
    assert shown.startswith(f"{tmp_path / 'scenario.toml'}: cloud.kv_tokens: must be at least ")
    assert shown.endswith("(with cloud.0.kv_tokens = 64, seed = 3)")


def test_every_command_has_help() -> None:
    shown = call("--help").stdout
    for name in ("run", "sweep", "compare", "roofline"):
        assert name in shown
        done = call(name, "--help")
        assert (done.returncode, "--out" in done.stdout) == (0, True)


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios" / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_a_sweep_that_ships_can_be_planned(path: Path) -> None:
    plan = read_plan(path)
    assert plan.scenario == path.stem
    assert len({point.cell.key for point in plan.points}) == len(plan.points) > 1


def test_settings_are_labelled_by_the_last_part_of_their_keys_if_unambiguous() -> None:
    settings = {"edge.0.count": 2, "edge.1.count": 3, "edge.*.link.rtt_ms": 10.0, "policies.batching": "fifo"}
    assert brief(settings) == "edge.0.count 2, edge.1.count 3, rtt_ms 10, batching fifo"


def test_numbers_have_three_digits_or_all_digits_before_the_point() -> None:
    assert [number(value) for value in (0, 0.0868, 9.87, 49.84, 101.2, 12345.6)] == [
        "0.00", "0.09", "9.87", "49.8", "101", "12,346",
    ]  # fmt: skip


def test_a_run_shows_means_over_three_seeds_and_writes_its_own_seed(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    shown = call("run", path, "--out", tmp_path).stdout
    assert "means over 3 seeds" in shown
    assert "32 of 40 requests; the others are the warm-up" in shown, "each of 8 clients has begun once"
    assert (tmp_path / "report.json").read_text() == call("run", path, "--json").stdout
    assert "one seed" in call("run", path, "--seeds", 1, "--warm-up", 0).stdout
    assert '"seed": 3' in (tmp_path / "report.json").read_text()
