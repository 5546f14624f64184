"""The report says first where DSD is behind, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.files import write_result
from benchmarks.peers.__main__ import write_report
from benchmarks.peers.cells import Cell
from benchmarks.peers.measuring import Run
from benchmarks.peers.report import CAUSES, UNKNOWN, markdown, read_causes
from benchmarks.peers.results import path_of, read_cell
from benchmarks.peers.systems import LLAMA, ON_VLLM_INT8, ON_VLLM_PLAIN, VLLM_DRAFT
from tests.benchmarks.peers.sample_cells import ORIGIN, named, result

CELLS = [Cell(1, 50, 4), Cell(8, 50, 4), Cell(4, 50, 4)]
SPEEDS = {LLAMA: 90.0, VLLM_DRAFT: 500.0, ON_VLLM_PLAIN: 30.0, ON_VLLM_INT8: 70.0}
USED = named(*SPEEDS)
BEHIND = result(CELLS[0], USED, SPEEDS, {LLAMA: 50.0})
AHEAD = result(CELLS[1], USED, SPEEDS | {ON_VLLM_INT8: 180.0}, {LLAMA: 200.0})


def test_losses_come_before_requirements_and_figures() -> None:
    text = markdown(CELLS, [BEHIND, AHEAD], {}, "peers")
    parts = ["# Against peers", "## Where DSD is behind", "## What must hold", "## How", "## Cells", "## 1 client"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert "| c4-p50-t0 | 4 clients, prompts of 50, T = 0 | 0 of 4 | 0 | not measured |" in text
    assert "[c1-p50-t0](peers/c1-p50-t0.json)" in text


def test_cells_of_different_inputs_and_those_that_are_not_judged_are_told() -> None:
    text = markdown(CELLS, [BEHIND, replace(AHEAD, inputs="other")], {}, "peers")
    assert "no one comparison" in text
    assert "Not judged, since not measured or void: c4-p50-t0." in text
    assert "no one comparison" not in markdown(CELLS, [BEHIND, AHEAD], {}, "peers")


def test_a_system_that_failed_is_left_out_and_told(tmp_path: Path) -> None:
    without = BEHIND.without(LLAMA, "llama.cpp: no answer")
    text = markdown(CELLS, [without], {}, "peers")
    assert "**Left out**, since it failed: llama.cpp: no answer" in text
    assert "Judged without systems that failed: c1-p50-t0 has no llama.cpp." in text
    write_result(path_of(CELLS[0], tmp_path), without)
    run = Run(USED, {}, {}, "digest", ORIGIN, tmp_path, seed=1)
    assert run.started(CELLS[0]) == without, "the cell needs no other run for it"
    run.failed[VLLM_DRAFT] = "it ended"
    assert VLLM_DRAFT not in [system.name for system in run.started(CELLS[1]).systems]


def test_each_loss_has_its_cause_or_says_that_it_is_not_known() -> None:
    causes = {"c1-p50-t0": "One thread against two.", "c1-p50-t0 TTFT": "Prefill on one core."}
    lines = markdown(CELLS, [BEHIND, AHEAD], causes, "peers").splitlines()
    losses = {line.split(" | ")[1]: line for line in lines if line.startswith("| c1-p50-t0 | ")}
    assert losses["tokens/s"].endswith("| yes | One thread against two. |")
    assert losses["TTFT"].endswith("| yes | Prefill on one core. |")
    assert markdown(CELLS, [BEHIND], {}, "peers").count(UNKNOWN) == 3
    assert markdown(CELLS, [AHEAD], {}, "peers").count(UNKNOWN) == 0


def test_void_and_unfinished_cells_enter_no_comparison() -> None:
    void = replace(BEHIND, complaints=["verifier-0 restarted"])
    text = markdown(CELLS, [void, replace(AHEAD, is_finished=False)], {}, "peers")
    assert UNKNOWN not in text
    assert "**void**: verifier-0 restarted" in text
    assert "not finished" in text
    assert "No cell is measured yet." in text


def test_a_peer_with_our_draft_is_shown_and_not_counted() -> None:
    lines = markdown(CELLS, [BEHIND], {}, "peers").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {VLLM_DRAFT}") and "tokens" not in line and "5" in line]
    assert "not counted" in row
    assert not any("best peer" in line for line in lines if VLLM_DRAFT in line)


def test_causes_are_read_from_the_folder_and_must_be_text(tmp_path: Path) -> None:
    assert read_causes(tmp_path) == {}
    (tmp_path / CAUSES).write_text('"c1-p50-t0" = "Because."\n', encoding="utf-8")
    assert read_causes(tmp_path) == {"c1-p50-t0": "Because."}
    (tmp_path / CAUSES).write_text('"c1-p50-t0" = 3\n', encoding="utf-8")
    with pytest.raises(ValueError, match="cause of c1-p50-t0 must be text"):
        read_causes(tmp_path)


def test_the_report_stands_beside_the_folder_of_its_cells(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    write_result(path_of(CELLS[0], folder), BEHIND)
    assert write_report(CELLS, folder) == tmp_path / "peers.md"
    assert "# Against peers" in (tmp_path / "peers.md").read_text(encoding="utf-8")


def test_a_stopped_cell_goes_on_and_one_of_other_code_begins_anew(tmp_path: Path) -> None:
    run = Run(USED, {}, {}, "digest", ORIGIN, tmp_path, seed=1)
    assert run.started(CELLS[0]).rounds == []
    part = replace(BEHIND, rounds=BEHIND.rounds[:2], is_finished=False)
    write_result(path_of(CELLS[0], tmp_path), part)
    assert read_cell(CELLS[0], tmp_path) == part
    assert len(run.started(CELLS[0]).rounds) == 2
    assert run.unfinished(CELLS[:1]) == CELLS[:1]
    assert replace(run, inputs="other").started(CELLS[0]).rounds == []
    assert replace(run, systems=USED[1:]).started(CELLS[0]).rounds == []
    write_result(path_of(CELLS[0], tmp_path), BEHIND)
    assert run.unfinished(CELLS[:1]) == []
    write_result(path_of(CELLS[0], tmp_path), replace(BEHIND, complaints=["an error"]))
    assert run.started(CELLS[0]).rounds == []


def test_systems_that_were_not_compared_are_named() -> None:
    text = markdown(CELLS, [BEHIND], {}, "peers")
    assert "Not compared: " in text
    assert "DSD, target-only; " in text.partition("Not compared: ")[2].partition("\n")[0]
