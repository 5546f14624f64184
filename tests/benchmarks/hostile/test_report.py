"""The result of a hostile run survives its file, and its report names figures, limits and violations."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from benchmarks.harness.files import read_result, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.paired import Ratio
from benchmarks.hostile.__main__ import app
from benchmarks.hostile.records import HostileResult, HttpFigures, RoleFigures, Slowdown
from benchmarks.hostile.report import as_markdown


def a_result() -> HostileResult:
    slowdown = Slowdown(Ratio(0.98, 0.91, 1.05), 20.0, 30.3, 40)
    return HostileResult(
        Origin("a command", "a machine", "a date", "3", "abc1234"),
        seed=11,
        http=HttpFigures(2000, 4500, {"200": 1000, "400 invalid_json": 2000}, {"408, closed": 12}, 14.9, 134, slowdown),
        roles=[RoleFigures("verifier", 25_339, 62.0, {"open": 3}, 0, 17, 75, 5, [])],
        growth={"http": {"gateway": 1.25, "verifier-0": 0.5}, "verifier": {"gateway": -0.5}},
        violations=["no answer within 20 s\n  request: POST /v1/completions\n  answer: none"],
    )


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    write_result(tmp_path / "hostile.json", a_result())
    assert read_result(tmp_path / "hostile.json", HostileResult) == a_result()


def test_a_report_has_figures_with_their_limits_sessions_and_violations() -> None:
    text = as_markdown(a_result())
    assert "`a command`, a date, commit abc1234, a machine, Python 3. Seed 11." in text
    assert "3,000 bodies, after 4,500 for warming up: 2,000 with one fault, 1,000 with random changes." in text
    assert "| 400 invalid_json | 2,000 |" in text
    assert "| longest silence of the gateway on a connection | 14.9 s | 10 s, of half a body 20 s |" in text
    assert "| 0.980 (0.910 … 1.050) | 1.1 |" in text
    assert "| role of the key | packets | types | denied | sessions |" in text
    assert "| verifier | 25,339 | 1 | 0 | 17 | 75 | 5 | 0 |" in text
    assert "| attack | gateway | verifier-0 |" in text
    assert "| http | 1.2 | 0.5 |" in text
    assert "1 violations" in text
    assert "* 1 × no answer within 20 s" in text


def test_a_result_of_a_part_has_no_other_tables() -> None:
    text = as_markdown(HostileResult(Origin("a command", "a machine", "a date", "3"), 1))
    assert "commit" not in text
    assert "|" not in text
    assert text.endswith("No violation.")


def test_show_prints_the_report_of_a_file(tmp_path: Path) -> None:
    write_result(tmp_path / "hostile.json", a_result())
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "hostile.json")])
    assert shown.exit_code == 0
    assert shown.stdout.strip() == as_markdown(a_result())
