"""The report has a row for every policy, change, shared verifier, cell and card."""

from __future__ import annotations

from pathlib import Path

from awc_training.cards import Card
from awc_training.changes import ChangeRun, of_all
from awc_training.paper import CellFigures, PaperCell
from awc_training.report import EvaluationResults, write_report
from awc_training.shared_verifiers import SharedVerifierResult
from tests.awc_training.results import EVALUATION


def test_the_report_has_a_row_for_every_result(tmp_path: Path) -> None:
    figures = CellFigures(100.0, 40.0, 300.0, 0.9)
    better = CellFigures(150.0, 30.0, 300.0, 0.9)
    cell = PaperCell("gsm8k-600-10", {"static 4": figures, "wc-dnn": figures, "adaptive": better}, 1.5)
    shared = SharedVerifierResult("cpu-4", "static 8", 100.0, 40.0, 0.9, 0.8)
    seeds = [ChangeRun(1.5, 2.0, 0, 0.9), ChangeRun(0.5, 3.0, 1, 1.0), ChangeRun(2.5, 1.0, 2, 1.1)]
    found = EvaluationResults(
        EVALUATION,
        [of_all("rtt-2", "adaptive", seeds)],
        [shared],
        [cell],
    )
    card = Card("", ("a",), 3, 30, "", 1, 32, 100, 4321, 0.5, 2.0, {})
    write_report(tmp_path / "awc" / "report.md", found, {"wc-dnn": card})
    text = (tmp_path / "awc" / "report.md").read_text()
    for line in (
        "| wc-dnn |  | 1.395 | 80% | 0.990 | 0 | 0.945 | 0.909 |",
        "| ladder | interval 3 | 0.800 | 0% | 0.600 | 1 |",
        "| cpu-4 | static 8 | 100 | 40.0 | 0.900 | 0.800 |",
        "| ladder | 2.000 | 2.000 | 2.000 |",
        "| rtt-2 | adaptive | 1.5 | 2.5 | 2.0 | 1.0 | 1.000 |",
        "| gsm8k-600-10 | 100, 40.0, 300 | 100, 40.0, 300 | 150, 30.0, 300 | 1.500, 0.750, 1.000 | 1.5 |",
        "| wc-dnn | 4321 | 3 | 30 | 0.500 | 2.000 | 1 |",
    ):
        assert line in text, text
