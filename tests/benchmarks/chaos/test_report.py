"""A chaos run's result survives its file, and its report names figures and violations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.chaos.leftovers import GROWN_MIB, complaints
from benchmarks.chaos.records import (
    Attempt,
    CauseFigures,
    ChaosResult,
    Fault,
    Leftovers,
    MoveFigures,
    RequestRecord,
    SingleFigures,
    SinglePart,
    TextFigures,
)
from benchmarks.chaos.report import as_markdown
from benchmarks.chaos.run import rolling_figures, unexpected_ends
from benchmarks.chaos.system import ChaosSystem
from benchmarks.harness.files import read_result, write_result
from benchmarks.harness.origin import Origin

LEFT = Leftovers(1, 0, 2, {"gateway-0": 3, "drafter-0": -1}, {"gateway-0": 3.0, "verifier-0": GROWN_MIB + 1}, 4.0)
NOTHING = Leftovers(0, 0, 0, {"gateway-0": 0}, {"gateway-0": 2.0}, 1.0)


def a_result() -> ChaosResult:
    broken = Attempt("gateway-0", 1.0, 2.0, "broken off", ["one"], [""], 0, 0, [[1.2, 1.9]])
    rolling, _ = rolling_figures([RequestRecord(0, 0, 1, True, [broken])], [Fault("term-gateway", "gateway-0", 1.0)])
    return ChaosResult(
        origin=Origin("a command", "a machine", "a date", "3"),
        engine="torch",
        seed=1,
        duration_s=20.0,
        texts=TextFigures(12, 20, 300, wrong=1, lost=0, doubled=0),
        statuses={"ok": 12},
        failed={"its gateway was killed": 2},
        retried={"503 draining": 3},
        undisturbed_pause_s=0.4,
        undisturbed_ttft_s=0.9,
        causes=[
            CauseFigures("kill-verifier", 4, 5, 2.25),
            CauseFigures("memory", 2, 0, 0.0),
        ],
        moves=MoveFigures(7, 1.75, 3.5, num_unknown=2),
        faults=[Fault("memory", "", 1.0, 5.0)],
        not_run={"clock": "faketime is not installed"},
        leftovers=LEFT,
        single=SinglePart(
            0.3,
            0.7,
            TextFigures(40, 60, 900, wrong=0, lost=0, doubled=0),
            {},
            {"connection refused": 1},
            [SingleFigures("kill-verifier", 2, 3, 1.25, 0.5, 2.0, 0)],
            [Fault("kill-verifier", "verifier-0", 1.0, 5.0)],
        ),
        rolling=rolling,
        last_leftovers=NOTHING,
        violations=["wrong: request 3"],
    )


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    write_result(tmp_path / "torch.json", a_result())
    assert read_result(tmp_path / "torch.json", ChaosResult) == a_result()


def test_the_report_names_figures_what_did_not_run_and_violations() -> None:
    report = as_markdown(a_result())
    assert "| sessions that moved; answers whose gateway could not be asked | 7; 2 |" in report
    assert "| 1.75 s, 3.50 s |" in report
    for line in (
        "| requests, choices, tokens | 12, 20, 300 |",
        "| failed requests, by cause | its gateway was killed: 2 |",
        "| rolling restart: failed requests | broken off: 1 |",
        "| refused by a gateway, then asked at the other | 503 draining: 3 |",
        "| left behind the faults under load: sessions, KV tokens, subscriptions, tasks | 1, 0, 2, 3 |",
        "| left at the end: sessions, KV tokens, subscriptions, tasks | 0, 0, 0, 0 |",
        "| kill-verifier | 4 | 5 | 2.25 |",
        "| memory | 2 | 0 |  |",
        "One fault at a time: 40 requests, 900 tokens;",
        "| kill-verifier | 2 | 1.25 | 2 | 3 | 0.50 | 0 |",
        "Not run: clock: faketime is not installed.",
        "* wrong: request 3",
    ):
        assert line in report


def test_in_a_rolling_restart_only_a_gateway_that_ends_may_refuse() -> None:
    refused, answer = Attempt("gateway-0", 1.0, 2.0, "503 draining"), Attempt("gateway-1", 2.0, 3.0, "ok")
    asked = RequestRecord(0, 0, 1, True, [refused, answer])
    figures, found = rolling_figures([asked], [Fault("term-gateway", "gateway-0", 0.5, 3.0)])
    assert (figures.retried, found) == ({"503 draining": 1}, [])
    assert len(rolling_figures([asked], [Fault("term-gateway", "gateway-1", 0.5, 3.0)])[1]) == 1


def test_in_a_rolling_restart_no_request_may_fail() -> None:
    broken = Attempt("gateway-0", 1.0, 2.0, "broken off", ["one"], [""])
    figures, found = rolling_figures([RequestRecord(0, 0, 1, True, [broken])], [])
    assert figures.failed == {"broken off": 1}
    assert found


def test_what_is_left_is_a_violation() -> None:
    assert complaints(LEFT) == [
        "1 sessions left",
        "2 subscriptions left",
        "gateway-0 has 3 tasks more than at the start",
        "verifier-0 holds 65 MiB more than at the start",
    ]


def test_a_process_that_ends_more_often_than_faults_end_it_is_a_violation() -> None:
    children = {"gateway-0": SimpleNamespace(num_starts=2), "verifier-0": SimpleNamespace(num_starts=2)}
    system = cast(ChaosSystem, SimpleNamespace(children=cast(Any, children)))
    faults = [Fault("kill-gateway", "gateway-0", 1.0), Fault("hang-verifier", "verifier-0", 1.0)]
    assert unexpected_ends(system, faults) == ["verifier-0 ended 1 times by itself"]
