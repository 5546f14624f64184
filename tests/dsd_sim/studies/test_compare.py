"""Comparisons: ratios to a baseline, the best of several values, and published ratios."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import pytest

from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.compare import ComparisonFinding, ComparisonPlan, file_of, findings_of, of_variant, read_comparison
from dsd_sim.studies.report import FIGURES, SimReport, TimeStats
from dsd_sim.studies.runner import run_cells
from tests.dsd_sim.reports import a_report

ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG"
SCENARIO = """
name = "{name}"
[workload]
kind = "closed"
num_clients = 4
num_requests = 30
lengths = {{ prompt = 40, answer = {{ low = 5, high = 60 }}, max_tokens = 100 }}
[[edge]]
count = 4
times = {{ step_ms = 8.0 }}
link = {{ rtt_ms = {rtt_ms} }}
guesses = {{ kind = "independent", rate = 0.8 }}
[[cloud]]
count = 1
times = {{ base_ms = 15.0, token_ms = 0.5 }}
"""
COMPARISON = """
scenarios = ["near.toml", "f*.toml"]
baseline = "static 4"
seeds = [1, 2]
differs = ["Our links have no jitter."]

[[variant]]
name = "static 4"
set = { "policies.stop_and_wait" = true, "policies.window" = 4 }

[[variant]]
name = "sliding"
set = { policies = { window = 8, free_run = true } }

[[variant]]
name = "best static"
set = { "policies.stop_and_wait" = true }
one_of = "policies.window"
values = [1, 3, 4, 6]
by = "tokens_per_s"

[[variant]]
name = "cloud-only"
set = { "policies.drafting" = false }

[[reported]]
scenario = "far"
variant = "sliding"
figure = "requests_per_s"
ratio = 1.097
source = "a paper, table 3"
"""
VARIANTS = ("static 4", "sliding", "best static", "cloud-only")


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """Writes two scenarios and a comparison of them; returns the comparison's file."""
    text = COMPARISON
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    for name, rtt_ms in (("near", 5), ("far", 60)):
        (folder / f"{name}.toml").write_text(SCENARIO.format(name=name, rtt_ms=rtt_ms))
    path = folder / "compare.toml"
    path.write_text(text)
    return path


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsd_sim", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@dataclass(frozen=True)
class Compared:
    """A comparison that was run by its command, and what it wrote."""

    plan: ComparisonPlan
    reports: dict[str, SimReport]
    folder: Path
    out: str
    findings: list[ComparisonFinding]
    found: dict[str, Any]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compare")
    path = written(folder / "pair")
    done = call("compare", folder / "pair", "--out", folder / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "out" / "compare.json").read_bytes())
    plan = read_comparison(path)
    shown: list[tuple[int, int]] = []
    reports = run_cells(plan.cells, folder / "out" / "cells", 1, lambda num_done, num: shown.append((num_done, num)))
    assert shown == [(24, 24)], "all are there, and static 4 is one of the best static's"
    findings = msgspec.convert(found["findings"], list[ComparisonFinding])
    return Compared(plan, reports, folder / "out", done.stdout, findings, found)


# --- findings ---------------------------------------------------------------------------------------------------------


def test_every_variant_of_a_scenario_meets_the_same_requests(compared: Compared) -> None:
    assert compared.plan.scenarios == ("far", "near")
    for scenario in compared.plan.scenarios:
        found = [of_variant(compared.findings, scenario, variant) for variant in VARIANTS]
        assert len({finding.figures["num_tokens"].mean for finding in found}) == 1
    assert compared.findings == findings_of(compared.plan, compared.reports)


def test_ratios_are_of_means_over_seeds_to_the_baseline(compared: Compared) -> None:
    for scenario in compared.plan.scenarios:
        base = of_variant(compared.findings, scenario, "static 4")
        assert {ratio for ratio in base.ratios.values() if ratio is not None} == {1.0}
        for variant in VARIANTS:
            finding = of_variant(compared.findings, scenario, variant)
            assert len(finding.seeds) == len(finding.cells) == 2
            values = [compared.reports[key].tpot_ms.mean for key in finding.cells]
            spread = finding.figures["tpot_ms.mean"]
            assert (spread.mean, spread.low, spread.high) == (fmean(values), min(values), max(values))
            assert finding.ratios["tpot_ms.mean"] == spread.mean / base.figures["tpot_ms.mean"].mean
    assert of_variant(compared.findings, "near", "cloud-only").figures["fates.drafted"].high == 0


def test_the_best_of_several_values_is_taken_in_each_scenario(compared: Compared) -> None:
    for scenario in compared.plan.scenarios:
        means = {}
        for choice in compared.plan.choices:
            if (choice.scenario, choice.variant.name) == (scenario, "best static"):
                (window,) = choice.chosen.values()
                means[window] = fmean(compared.reports[cell.key].tokens_per_s for cell in choice.cells)
        finding = of_variant(compared.findings, scenario, "best static")
        assert set(means) == {1, 3, 4, 6}
        assert finding.figures["tokens_per_s"].mean == max(means.values())
        assert finding.chosen == {"policies.window": max(means, key=lambda window: means[window])}
        assert f"at window {finding.chosen['policies.window']}" in compared.out


def test_of_times_the_shortest_is_best_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    plan = read_comparison(written(tmp_path, ('by = "tokens_per_s"', 'by = "tpot_ms.mean"')))
    reports = {}
    for choice in plan.choices:
        window = choice.cells[0].scenario.policies.window
        times = TimeStats(float(abs(window - 5)), 0.0, 0.0, 0.0)  # 4 and 6 are alike
        for cell in choice.cells:
            reports[cell.key] = msgspec.structs.replace(a_report(), tpot_ms=times)
    findings = findings_of(plan, reports)
    assert of_variant(findings, "far", "best static").chosen == {"policies.window": 4}
    assert of_variant(findings, "far", "sliding").chosen == {}
    assert of_variant(findings, "far", "sliding").ratios["goodput"] is None, "the baseline has none"


# --- output -----------------------------------------------------------------------------------------------------------


def test_published_ratios_and_differences_are_shown(compared: Compared) -> None:
    ratio = of_variant(compared.findings, "far", "sliding").ratios["requests_per_s"]
    table = compared.out[compared.out.index("throughput, requests/s; × as much as static 4") :]
    assert f"{ratio:.3f}×" in table
    assert compared.out.count("reported 1.097×") == 1
    assert "reported: a paper, table 3" in compared.out
    assert "differs: Our links have no jitter." in compared.out
    assert of_variant(compared.findings, "far", "sliding").reported == {"requests_per_s": 1.097}
    assert (compared.found["sources"], compared.found["differs"]) == (
        ["a paper, table 3"],
        ["Our links have no jitter."],
    )
    for title in ("throughput, tokens/s", "goodput, tokens/s", "TPOT, mean ms", "TTFT, mean ms"):
        assert f"{title}; × as much as static 4" in compared.out


def test_its_csv_has_a_line_for_each_figure_of_each_variant(compared: Compared) -> None:
    with (compared.folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == [
        "scenario",
        "variant",
        "chosen",
        "seeds",
        "figure",
        "mean",
        "low",
        "high",
        "ratio",
        "reported",
    ]
    assert len(rows) == 2 * len(VARIANTS) * len(FIGURES)
    (reported,) = (row for row in rows if row["reported"])
    assert (reported["scenario"], reported["variant"], reported["figure"]) == ("far", "sliding", "requests_per_s")
    assert all(float(row["low"]) <= float(row["high"]) for row in rows)
    assert {row["chosen"] for row in rows if row["variant"] == "static 4"} == {""}


def test_there_is_a_plot_of_each_figure_that_is_shown(compared: Compared) -> None:
    plots = {path.name for path in compared.folder.glob("*.png") if path.read_bytes().startswith(PNG)}
    assert plots == {f"compare-{figure}.png" for figure in compared.plan.comparison.figures}
    assert compared.plan.comparison.figures[-1] == "requests_per_s"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "static 4"', "", "baseline: Field required"),
        ('baseline = "static 4"', 'baseline = "static"', "baseline must be one of static 4, sliding, best static, "),
        ('"near.toml"', '"nowhere*.toml"', "scenarios: no file matches 'nowhere*.toml'"),
        ('"near.toml"', '"/near.toml"', "scenarios: '/near.toml' is not a file pattern"),
        ('name = "sliding"', 'name = "static 4"', "variant: two have the same name"),
        ('variant = "sliding"', 'variant = "slide"', "reported.variant must be one of static 4, sliding, "),
        ('scenario = "far"', 'scenario = "off"', "reported.0.scenario: must be one of far, near, got 'off'"),
        ('figure = "requests_per_s"', 'figure = "speed"', "reported.0: figure must be one of num_requests, "),
        ('by = "tokens_per_s"', 'by = "speed"', "variant.2: by must be one of num_requests, "),
        ("values = [1, 3, 4, 6]", "", "variant.2: one_of and values must be given together"),
        ("values = [1, 3, 4, 6]", "values = [1, 80]", "variant 'best static': "),
        ('"policies.window" = 4', '"policies.windw" = 4', "policies.windw: Extra inputs are not permitted"),
        ("seeds = [1, 2]", "seeds = []", "seeds: "),
        ("seeds = [1, 2]", "speed = 2", "speed: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_bad_comparison_is_reported_in_one_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, (old, new))
    with pytest.raises(BadScenario) as refusal:
        read_comparison(path)
    shown = str(refusal.value)
    assert shown.startswith(f"{path}: ")
    assert message in shown
    assert "\n" not in shown


def test_bad_scenarios_and_repeated_names_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "far2.toml").write_text(SCENARIO.format(name="far", rtt_ms=10))
    with pytest.raises(BadScenario, match=r"far2\.toml: name: 'far' is also the name of .*far\.toml"):
        read_comparison(path)
    (tmp_path / "far2.toml").write_text(SCENARIO.format(name="far2", rtt_ms=-1))
    with pytest.raises(BadScenario, match=r"far2\.toml: edge\.0\.link\.rtt_ms: Input should be greater than or equal"):
        read_comparison(path)


def test_a_comparison_is_named_by_its_file_or_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert file_of(tmp_path) == file_of(path) == path
    done = call("compare", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"[Errno 2] No such file or directory: '{tmp_path / 'nowhere'}'\n"
