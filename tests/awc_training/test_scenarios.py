"""Training, development and sealed scenarios: reproducible, different, and able to run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from awc_training import sealed
from awc_training.cases import cases
from awc_training.development import development
from awc_training.request_trace import CONVERSATION, write_trace
from awc_training.scenarios import FOLDER, TRAINING, changing, drawn
from awc_training.sealed import NotSealed, Opening, describe, open_set, openings, sealed_scenarios, seed_of
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import key_of


def test_the_same_scenarios_are_drawn_again(tmp_path: Path) -> None:
    assert drawn(TRAINING, 5) == drawn(TRAINING, 8)[:5]
    assert development(5) == development(8)[:5]
    assert list(sealed_scenarios(1, 3, tmp_path)) == list(sealed_scenarios(1, 5, tmp_path))[:3]


def test_no_two_scenarios_are_alike(tmp_path: Path) -> None:
    found = [*drawn(TRAINING, 30), *development(30)]
    keys = {key_of(scenario, FOLDER) for scenario in found}
    keys |= {key_of(scenario, tmp_path) for seed in (1, 2) for scenario in sealed_scenarios(seed, 15, tmp_path)}
    assert len(keys) == 90


def test_scenarios_can_be_run(tmp_path: Path) -> None:
    for each in (*drawn(TRAINING, 10), *development(20)):
        make_fleet(each, FOLDER)
    for each in sealed_scenarios(3, 20, tmp_path):
        make_fleet(each, tmp_path)


def test_development_scenarios_have_what_a_window_depends_on() -> None:
    found = development(48)
    links = [edge.link for each in found for edge in each.edge]
    assert {each.cloud[0].count for each in found} == {1, 2, 4, 8}
    assert min(link.rtt_ms for link in links) < 10 < 250 < max(link.rtt_ms for link in links)
    assert sum(link.stall_rate > 0 for link in links) > 5
    assert sum(bool(each.change) for each in found) > 8


def test_some_objectives_can_be_met_by_the_target_alone() -> None:
    lenient = [each for each in development(48) if each.objective.tpot_ms > 1.2 * _pass_ms(each)]
    assert 5 < len(lenient) < 43


def _pass_ms(scenario: Scenario) -> float:
    times = scenario.cloud[0].times
    assert times is not None
    return times.base_ms + times.session_ms + times.token_ms


def test_what_changes_is_all_that_differs_between_the_phases() -> None:
    for each in changing(seed=9):
        before, after = each.phases
        assert each.scenario.seed == before.seed == after.seed == 9
        differing = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
        assert differing <= {"name", "edge", "workload"}
        assert len(differing) == 2


def test_the_cases_of_window_control_can_be_run() -> None:
    found = cases()
    assert len(found) == 8
    for each in found.values():
        make_fleet(each, FOLDER)


def test_a_trace_has_the_medians_and_the_bursts_that_were_published(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, np.random.default_rng(5), CONVERSATION, 4.0, 2.0, 4000)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    gaps = np.diff([row["arrival_ms"] for row in rows])
    assert median(row["prompt_tokens"] for row in rows) == pytest.approx(1020, rel=0.1)
    assert median(row["target_tokens"] for row in rows) == pytest.approx(129, rel=0.1)
    assert gaps.mean() == pytest.approx(250, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.15)


def test_each_commit_has_a_sealed_set_of_its_own() -> None:
    assert seed_of("a") != seed_of("b")
    assert seed_of("a") == seed_of("a")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    (tmp_path / "code.py").write_text("one\n")
    for command in ("init -q", "add code.py", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(sealed, "ROOT", tmp_path)
    return tmp_path


def test_every_opening_is_recorded_once_for_a_commit(repository: Path) -> None:
    record = repository / "sealed.jsonl"
    first, again = (open_set("release 1", record) for _ in range(2))
    assert first == again
    assert openings(record) == [first]
    assert (first.candidate, len(first.commit)) == ("release 1", 12)


def test_a_page_says_which_opening_of_the_record_it_is() -> None:
    found = [Opening("2026-11-29", commit, "release", 60) for commit in ("a", "b", "c")]
    assert describe(found[1], found).startswith("Opening 2 of 3 in the [record](sealed.jsonl), of 60 scenarios.")


def test_a_set_is_not_opened_with_local_changes(repository: Path) -> None:
    (repository / "code.py").write_text("two\n")
    with pytest.raises(NotSealed, match="commit"):
        open_set("release 1", repository / "sealed.jsonl")
    assert openings(repository / "sealed.jsonl") == []
