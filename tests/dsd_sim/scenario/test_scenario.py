"""Scenarios: valid and invalid files, error messages, and that equal seeds give equal bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_sim.engine.acceptance import AcceptanceModel
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario, read_scenario, read_toml
from dsd_sim.scenario.table import BadScenario
from dsd_sim.scenario.workload import make_requests
from dsd_sim.studies.report import report_of

ROOT = Path(__file__).parents[3]
SCENARIO = """
name = "test"
seed = 3
[workload]
kind = "poisson"
rate_per_s = 2.0
num_requests = 60
lengths = { prompt = 40, answer = { low = 5, high = 60 }, max_tokens = 100 }
[[edge]]
name = "near"
count = 3
times = { step_ms = 8.0 }
link = { rtt_ms = 20 }
guesses = { kind = "independent", rate = 0.8 }
[[cloud]]
count = 2
times = { base_ms = 15.0, token_ms = 0.5 }
[policies]
windows = "ladder"
"""
TRACE = [
    {"arrival_ms": 0.0, "prompt_tokens": 10, "target_tokens": 5, "device_tier": "near", "metadata": {}},
    {"arrival_ms": 20.0, "prompt_tokens": 20, "target_tokens": 7, "device_tier": "near"},
]


def written(folder: Path, text: str = SCENARIO, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def traced(folder: Path, lines: list[str]) -> Path:
    (folder / "trace.jsonl").write_text("".join(f"{line}\n" for line in lines))
    start, end = SCENARIO.index("[workload]"), SCENARIO.index("[[edge]]")
    return written(folder, SCENARIO[:start] + '[workload]\nkind = "trace"\nfile = "trace.jsonl"\n' + SCENARIO[end:])


def report(path: Path) -> bytes:
    scenario = read_scenario(path)
    fleet = make_fleet(scenario, path.parent)
    fleet.run()
    return report_of(scenario, fleet).encode()


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first, again = report(written(tmp_path)), report(written(tmp_path))
    other = report(written(tmp_path, SCENARIO, ("seed = 3", "seed = 4")))
    assert first == again != other
    found = json.loads(first)
    assert (found["scenario"], found["seed"], found["num_requests"]) == ("test", 3, 60)
    fates = found["fates"]
    assert fates["drafted"] == sum(num for name, num in fates.items() if name != "drafted") > 0


@dataclass
class RecordingModel:
    """An acceptance model that records its draws."""

    model: AcceptanceModel
    drawn: list[bytes]

    def fill(self, right: NDArray[np.bool_], confidence: NDArray[np.float32], rng: np.random.Generator) -> None:
        self.model.fill(right, confidence, rng)
        self.drawn.append(right.tobytes() + confidence.tobytes())


def test_all_policies_meet_the_same_requests_and_guesses(tmp_path: Path) -> None:
    worlds, guesses = [], []
    for policy in ('windows = "ladder"', 'windows = "static"', "window = 2\nstop_and_wait = true"):
        path = written(tmp_path, SCENARIO, ('windows = "ladder"', policy))
        fleet = make_fleet(read_scenario(path), tmp_path)
        drawn: list[bytes] = []
        fleet.acceptance = [RecordingModel(model, drawn) for model in fleet.acceptance]
        fleet.run()
        worlds.append(fleet.world)
        guesses.append(sorted(drawn))
    for name in ("arrival_ms", "prompt", "tokens", "device"):
        assert all(np.array_equal(world.requests[name], worlds[0].requests[name]) for world in worlds), name
    assert len(guesses[0]) == 60
    assert guesses[0] == guesses[1] == guesses[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate_per_s = 2.0", "rate_per_second = 2.0", "workload.rate_per_s: Field required"),
        ("rate_per_s = 2.0", "rate_per_s = 0", "workload.rate_per_s: Input should be greater than or equal"),
        ("rate_per_s = 2.0", "rate_per_s = nan", "workload.rate_per_s: Input should be a finite number"),
        ("rate_per_s = 2.0", 'rate_per_s = "2"', "workload.rate_per_s: Input should be a valid number"),
        ("count = 2", "count = 0", "cloud.0.count: Input should be greater than or equal to 1"),
        ("rtt_ms = 20", "rtt = 20", "edge.0.link.rtt_ms: Field required"),
        ("rtt_ms = 20", "rtt_ms = 20, hops = 3", "edge.0.link.hops: Extra inputs are not permitted"),
        ("rate = 0.8", "rate = 1.8", "edge.0.guesses.rate: Input should be less than or equal to 1"),
        ('kind = "independent"', 'kind = "lucky"', "edge.0.guesses: Input tag 'lucky'"),
        ("low = 5", "low = 61", "workload.lengths.answer: low 61 is above high 60"),
        ('windows = "ladder"', "window = 80", "policies.window: Input should be less than or equal to 64"),
        ('windows = "ladder"', "window = 1\nchunk = 2", "policies: chunk 2 is above window 1"),
        (
            'windows = "ladder"',
            'windows = "adaptive"\nstop_and_wait = true',
            "policies: windows 'adaptive' sets chunk and free_run itself",
        ),
        ('windows = "ladder"', "stop_and_wait = true\nchunk = 2", "policies: stop_and_wait and chunk can't both be"),
        ('windows = "ladder"', 'windows = "oracle"', "policies: windows: must be one of static, ladder"),
        ('windows = "ladder"', 'batching = "lifo"', "policies.batching: Input should be 'worth', 'fifo', 'lab' or"),
        ("prompt = 40, ", "", "workload.lengths: either prompt and answer or a file with both must be given"),
        ("prompt = 40", 'prompt = 40, file = "x.json"', "workload.lengths: either prompt and answer or a file"),
        ("prompt = 40, answer = { low = 5, high = 60 }", 'file = "x.json"', "workload.lengths.file: [Errno 2] No such"),
        ("[policies]", "[[change]]\nat_s = 1.0\n[policies]", "change.0: one of link, guesses"),
        ("[policies]", "[[change]]\nat_s = 1.0\nlink = {}\n[policies]", "change.0.link: one of rtt_ms"),
        ("[policies]", '[[failure]]\npart = "nats"\nat_s = 1\nfor_s = 1\n[policies]', "failure.0.part: Input should"),
        ("[policies]", '[[failure]]\npart = "verifiers"\nat_s = 1\nfor_s = 1\nedge = "near"\n[policies]',
         "failure.0: edge can't be given with part 'verifiers'"),
        ("[policies]", '[[failure]]\npart = "controller"\nat_s = 1\nfor_s = 1\nshare = 0.5\n[policies]',
         "failure.0: share can't be given with part 'controller'"),
        ("[policies]", '[[change]]\nat_s = 1\nedge = "near"\nload = 2.0\n[policies]', "change.0: edge can't be given"),
        ('kind = "independent", rate = 0.8', 'kind = "markov", easy = 1, hard = 0, to_hard = 0, to_easy = 0',
         "edge.0.guesses: to_hard and to_easy must not both be 0"),
        ("[policies]\nwindows = \"ladder\"",
         '[[change]]\nat_s = 1\nlink = { rtt_ms = 1.0 }\n[policies]\ncolocated = true\nwindow = 4',
         "change: with policies.colocated, link and"),
        ("seed = 3", "seed = 18446744073709551616", "seed: Input should be less than"),
        ("[policies]", '[[failure]]\npart = "links"\nat_s = 1\nfor_s = 1\nedge = "far"\n[policies]',
         "names the edge 'far', but no edge has that name"),
        ('windows = "ladder"', 'routing = "best"', "policies: routing must be one of random, round-robin"),
        ("[policies]", '[lookup]\nfile = "none.jsonl"\n[policies]', "lookup.file: [Errno 2] No such file or directory"),
        ("[policies]", '[lookup]\nfile = "x.jsonl"\ntokens = 65\n[policies]', "lookup.tokens: Input should be less"),
        ("count = 2", "count = 2\nkv_tokens = 64", "cloud.kv_tokens: must be at least "),
        ("name = \"test\"", "name = ", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_bad_scenario_is_reported_in_one_line_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, SCENARIO, (old, new))
    command = [sys.executable, "-m", "dsd_sim", "run", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(str(path))
    assert message in done.stderr


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "trace.jsonl: the trace is empty"),
        ([json.dumps(TRACE[1]), json.dumps(TRACE[0])], "line 2: arrival_ms 0.0 is before the line above it"),
        ([json.dumps(TRACE[0] | {"target_tokens": 0})], "line 1: Expected `int` >= 1 - at `$.target_tokens`"),
        (["{"], "line 1: Input data was truncated"),
        ([json.dumps(TRACE[0] | {"device_tier": "far"})], "no edge has the name 'far', which is a device_tier"),
    ],
)
def test_a_trace_that_cannot_be_played_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = traced(tmp_path, lines)
    with pytest.raises(BadScenario, match=re.escape(message)):
        make_fleet(read_scenario(path), tmp_path)


def test_a_trace_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = traced(tmp_path, [json.dumps(TRACE[0])])
    (tmp_path / "trace.jsonl").write_bytes(
        json.dumps(TRACE[0] | {"device_tier": "NAME"}).encode().replace(b"NAME", b"\xff")
    )
    with pytest.raises(BadScenario, match=r"line 1: .*(?i:utf-8)"):
        report(path)


def test_a_trace_starts_with_its_first_request(tmp_path: Path) -> None:
    found = []
    for later_ms in (0.0, 1.7e12):  # from its own start, and since 1970
        lines = [json.dumps(each | {"arrival_ms": each["arrival_ms"] + later_ms}) for each in TRACE]
        found.append(report(traced(tmp_path, lines)))
    assert found[0] == found[1]


def test_a_trace_is_played_at_its_times(tmp_path: Path) -> None:
    path = traced(tmp_path, [json.dumps(line) for line in TRACE])
    fleet = make_fleet(read_scenario(path), tmp_path)
    fleet.run()
    requests = fleet.world.requests
    assert requests["arrival_ms"].tolist() == [0.0, 20.0]
    assert requests["prompt"].tolist() == [10, 20]
    assert requests["tokens"].tolist() == [5, 7]


WORKLOADS = {
    "poisson": {"rate_per_s": 5.0},
    "bursts": {"calm_per_s": 2.0, "busy_per_s": 20.0, "calm_s": 6.0, "busy_s": 2.0},
    "diurnal": {"mean_per_s": 5.0, "swing": 0.9, "period_s": 20.0},
}


@pytest.mark.parametrize(("kind", "rate"), [("poisson", 5.0), ("bursts", 6.5), ("diurnal", 5.0)])
def test_an_open_workload_has_its_rate(kind: str, rate: float) -> None:
    scenario = Scenario.model_validate_json(json.dumps(scenario_of(kind)))
    requests = make_requests(scenario.workload, Path(), np.random.default_rng(1))
    assert (np.diff(requests.arrival_ms) >= 0).all()
    assert len(requests.arrival_ms) / requests.arrival_ms[-1] * 1000 == pytest.approx(rate, rel=0.05)
    counts = np.bincount((requests.arrival_ms / 1000).astype(int))
    spread = counts.var() / counts.mean()
    assert 0.9 < spread < 1.1 if kind == "poisson" else spread > 2, "others are burstier than Poisson"


def scenario_of(kind: str) -> dict[str, object]:
    lengths = {"prompt": {"edges": [10, 20, 40], "counts": [1, 3]}, "answer": 4}
    return {
        "name": kind,
        "workload": {"kind": kind, "num_requests": 20_000, "lengths": lengths, **WORKLOADS[kind]},
        "cloud": [{"count": 1, "times": {"base_ms": 10.0}}],
        "policies": {"drafting": False},
    }


def test_lengths_follow_their_histogram() -> None:
    scenario = Scenario.model_validate_json(json.dumps(scenario_of("poisson")))
    prompt = make_requests(scenario.workload, Path(), np.random.default_rng(1)).prompt
    assert (prompt.min(), prompt.max()) == (10, 39)
    assert (prompt >= 20).mean() == pytest.approx(0.75, abs=0.02)


def test_clients_wait_for_their_answers_and_think(tmp_path: Path) -> None:
    text = SCENARIO.replace('kind = "poisson"\nrate_per_s = 2.0', 'kind = "closed"\nnum_clients = 4\nthink_s = 0.5')
    path = written(tmp_path, text)
    fleet = make_fleet(read_scenario(path), tmp_path)
    fleet.run()
    requests = fleet.world.requests
    assert len(np.unique(requests["device"])) == 3, "clients are spread over the devices"
    for client in range(4):
        mine = requests[requests["client"] == client]
        pauses = mine["arrival_ms"][1:] - mine["done_ms"][:-1]
        assert len(mine) > 10
        assert len(set(mine["device"].tolist())) == 1, "a client keeps its device"
        assert (pauses >= 0).all()
        assert 100 < pauses.mean() < 1500


@pytest.mark.parametrize("loads", [(0.5,), (3.0, 2.0)], ids=str)
def test_a_falling_load_is_refused_in_a_closed_loop(tmp_path: Path, loads: tuple[float, ...]) -> None:
    text = SCENARIO.replace('kind = "poisson"\nrate_per_s = 2.0', 'kind = "closed"\nnum_clients = 4')
    text += "".join(f"[[change]]\nat_s = {number}\nload = {load}\n" for number, load in enumerate(loads))
    with pytest.raises(BadScenario, match=r"change\.load: in a closed loop the load must not fall"):
        read_scenario(written(tmp_path, text))


def singles() -> list[Path]:
    """Files with a single scenario, except the large ones of the paper's table (test_paper.py)."""
    paths = sorted((ROOT / "scenarios").rglob("*.toml"))
    return [path for path in paths if path.parent.name not in ("paper", "plan") and "sweep" not in read_toml(path)]


def test_a_free_client_makes_the_next_request(tmp_path: Path) -> None:
    """So all clients ask until the end, even if their answers have different lengths."""
    text = SCENARIO.replace('kind = "poisson"\nrate_per_s = 2.0', 'kind = "closed"\nnum_clients = 4')
    fleet = make_fleet(read_scenario(written(tmp_path, text)), tmp_path)
    fleet.run()
    requests = fleet.world.requests
    assert (np.diff(requests["arrival_ms"]) >= 0).all()
    last = [requests["done_ms"][requests["client"] == client].max() for client in range(4)]
    assert min(last) >= requests["arrival_ms"].max(), "nobody has stopped asking before the last request was made"


@pytest.mark.parametrize("path", singles(), ids=lambda path: path.stem)
def test_a_scenario_that_ships_runs(path: Path) -> None:
    assert json.loads(report(path))["num_requests"] > 0
