"""Traces and plots of one run: they agree with the log, and the log agrees with the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_sim.engine.world import LOG, PASS, STEER, STEP, World
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario, read_scenario
from dsd_sim.studies.plots import busy_until, windows_over
from dsd_sim.studies.trace import DEVICES, REQUESTS, VERIFIERS, cut_ms, log_of, write_trace

ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG"
SCENARIO = """
name = "test"
seed = 3
[workload]
kind = "poisson"
rate_per_s = 3.0
num_requests = 60
lengths = { prompt = 40, answer = { low = 20, high = 60 }, max_tokens = 100 }
[[edge]]
name = "near"
count = 2
times = { step_ms = 8.0 }
link = { rtt_ms = 20 }
guesses = { kind = "independent", rate = 0.8 }
[[edge]]
name = "far"
count = 2
times = { step_ms = 20.0 }
link = { rtt_ms = 150 }
guesses = { kind = "independent", rate = 0.3 }
[[cloud]]
count = 2
times = { base_ms = 15.0, token_ms = 0.5 }
[policies]
windows = "ladder"
window = 6
"""


@dataclass(frozen=True)
class Traced:
    """A run and the events of its trace, by `ph`."""

    scenario: Scenario
    world: World
    events: dict[str, list[dict[str, Any]]]

    def slices(self, pid: int, tid: int) -> list[dict[str, Any]]:
        return [event for event in self.events["X"] if (event["pid"], event["tid"]) == (pid, tid)]


def traced(folder: Path, num_logged: int) -> Traced:
    path = folder / "scenario.toml"
    path.write_text(SCENARIO)
    scenario = read_scenario(path)
    fleet = make_fleet(scenario, folder, num_logged)
    fleet.run()
    write_trace(folder / "new" / "trace.json", scenario, fleet.world)
    trace = json.loads((folder / "new" / "trace.json").read_bytes())
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert trace["otherData"] == {"scenario": scenario.name, "seed": scenario.seed}
    events = defaultdict(list)
    for event in trace["traceEvents"]:
        events[event["ph"]].append(event)
    return Traced(scenario, fleet.world, events)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(tmp_path_factory.mktemp("trace"), 200_000)


# --- traces -----------------------------------------------------------------------------------------------------------


def test_passes_and_steps_of_a_trace_add_up_to_the_busy_times(whole: Traced) -> None:
    assert set(whole.events) == {"M", "X", "C", "b", "e"}
    for pid, records in ((VERIFIERS, whole.world.nodes), (DEVICES, whole.world.devices)):
        for index, record in enumerate(records):
            slices = whole.slices(pid, index)
            assert len(slices) > 10
            assert sum(each["dur"] for each in slices) / 1000 == pytest.approx(record["busy_ms"], rel=1e-6)
    assert len(whole.events["X"]) == sum(len(whole.slices(pid, index)) for pid in (1, 2) for index in range(4))


def test_one_thing_at_a_time_runs_on_a_track(whole: Traced) -> None:
    for pid, num in ((VERIFIERS, 2), (DEVICES, 4)):
        for index in range(num):
            slices = whole.slices(pid, index)
            for one, other in pairwise(slices):
                assert one["ts"] + one["dur"] <= other["ts"] + 1e-3


def test_a_request_spans_its_arrival_first_token_and_end(whole: Traced) -> None:
    times: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for ph in "be":
        for event in whole.events[ph]:
            assert (event["pid"], event["cat"]) == (REQUESTS, "request")
            times[event["id"]][event["name"]][ph] = event["ts"]
    assert len(times) == len(whole.world.requests) == 60
    for key, parts in times.items():
        request = whole.world.requests[int(key, 16)]
        arrival, first, done = (1000 * request[name] for name in ("arrival_ms", "first_ms", "done_ms"))
        assert parts["request"] == {"b": arrival, "e": done}
        assert parts["to the first token"] == {"b": arrival, "e": first}
        assert parts["answer"] == {"b": first, "e": done}
        assert arrival < first <= done


def test_window_counters_begin_with_the_window_at_the_start(whole: Traced) -> None:
    steers = log_of(whole.world)
    steers = steers[steers["kind"] == STEER]
    assert len(steers) > 0
    assert len(whole.events["C"]) == len(steers) + len(set(steers["who"].tolist()))
    first: dict[str, dict[str, Any]] = {}
    for event in whole.events["C"]:
        first.setdefault(event["name"], event)
    assert all((event["ts"], event["args"]) == (0.0, {"window": 6}) for event in first.values())
    device, node = divmod(int(steers["who"][0]), 2)
    name = ("near 0", "near 1", "far 0", "far 1")[device]
    assert next(iter(first)) == f"window of {name} at verifier {node}"


def test_tracks_have_names(whole: Traced) -> None:
    threads = [event for event in whole.events["M"] if event["name"] == "thread_name"]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in threads}
    devices = ["near 0", "near 1", "far 0", "far 1"]
    expected = {(DEVICES, index): name for index, name in enumerate(devices)}
    assert names == expected | {(VERIFIERS, 0): "verifier 0", (VERIFIERS, 1): "verifier 1"}


def test_a_full_log_cuts_the_trace(whole: Traced, tmp_path: Path) -> None:
    assert cut_ms(whole.world) is None
    cut = traced(tmp_path, 300)
    end = cut_ms(cut.world)
    assert end is not None
    assert np.array_equal(log_of(cut.world), log_of(whole.world)[:300]), "the log changes nothing of the run"
    assert (cut.world.requests["done_ms"] == whole.world.requests["done_ms"]).all()
    num_come = int((cut.world.requests["arrival_ms"] <= end).sum())
    assert 0 < num_come < 60
    assert len([event for event in cut.events["b"] if event["name"] == "request"]) == num_come


def test_a_run_writes_the_trace_and_plots_that_its_options_name(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    options = ["--trace", str(tmp_path / "trace.json"), "--plots", str(tmp_path / "plots"), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "dsd_sim", "run", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "the log was full" not in done.stderr
    assert "TTFT" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    plots = {each.name for each in (tmp_path / "plots").iterdir() if each.read_bytes().startswith(PNG)}
    assert plots == {"over-time.png", "times.png"}
    assert (tmp_path / "report.json").is_file()


# --- over time --------------------------------------------------------------------------------------------------------


def log_with(*entries: tuple[int, int, int, float, float]) -> np.ndarray[Any, Any]:
    """A log of entries (kind, who, num, start, end)."""
    log = np.zeros(len(entries), LOG)
    for record, (kind, who, num, start, end) in zip(log, entries, strict=True):
        record["kind"], record["who"], record["num"], record["start"], record["end"] = kind, who, num, start, end
    return log


def test_windows_over_time_hold_until_the_next_decision() -> None:
    steers = (STEER, 3, 8, 10, 10), (STEER, 1, 2, 20, 20), (STEER, 3, 4, 30, 30)
    log = log_with(steers[0], (PASS, 0, 1, 12, 20), *steers[1:], (STEP, 1, 1, 31, 39))
    times = np.array([0.0, 10.0, 19.0, 20.0, 35.0])
    assert windows_over(log, times, 5).tolist() == [[5, 5, 5, 2, 2], [5, 8, 8, 8, 4]]
    assert windows_over(log[1:2], times, 5).shape == (0, 5)


def test_entries_count_by_their_part_before_a_time() -> None:
    log = log_with((PASS, 0, 1, 10, 20), (PASS, 1, 1, 15, 25), (PASS, 0, 1, 40, 41))
    times = np.array([0.0, 10.0, 15.0, 18.0, 20.0, 30.0, 40.5, 100.0])
    assert busy_until(times, log) == pytest.approx([0, 0, 5, 11, 15, 20, 20.5, 21])
    assert busy_until(times, log[:0]).tolist() == [0] * 8
