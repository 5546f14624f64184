"""Extreme inputs are refused in one line that names the key, or simulated in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsd_sim.engine import fleet as engine
from dsd_sim.engine import world as worlds
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import read_scenario
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import Cell, fleet_of, run_fleet
from tests.dsd_sim.sweeping import written

CLOSED = 'kind = "closed"\nnum_clients = 8\nnum_requests = 40'
POISSON = 'kind = "poisson"\nnum_requests = 40\nrate_per_s = '
BURSTS = 'kind = "bursts"\nnum_requests = 40\ncalm_per_s = {}\nbusy_per_s = {}\ncalm_s = {}\nbusy_s = {}'
LENGTHS = "prompt = 40, answer = { low = 5, high = 60 }, max_tokens = 100"
HUGE = 10_000_000


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rtt_ms = 20", "rtt_ms = 1e300", "edge.0.link.rtt_ms: Input should be less than or equal to 60000"),
        ("rtt_ms = 20", "rtt_ms = 20, jitter_ms = inf", "edge.0.link.jitter_ms: Input should be a finite number"),
        ("rtt_ms = 20", "rtt_ms = 20, bandwidth_mbit = 1e-300", "edge.0.link.bandwidth_mbit: must be 0 or at least"),
        ("step_ms = 8.0", "step_ms = 1e-300", "edge.0.times.step_ms: must be at least 0.001"),
        ("step_ms = 8.0", "step_ms = 1e300", "edge.0.times.step_ms: Input should be less than or equal to 60000"),
        ("count = 2", "count = 3_000_000", "edge.count: 6,000,000 drafters, 1 verifiers and 40 requests"),
        ("count = 1", "count = 10_000_000", "edge.count: 4 drafters, 10,000,000 verifiers"),
        ("base_ms = 15.0, token_ms = 0.5", "base_ms = 0", "cloud.0.times: a pass of one token must take at least 0.00"),
        ("base_ms = 15.0, token_ms = 0.5", "base_ms = 1e-300", "cloud.0.times: a pass of one token must take at least"),
        ("token_ms = 0.5", "token_ms = 0.5, above_ms = [-0.4, -0.2, 0]", "cloud.0.times: token_ms and above_ms must"),
        (CLOSED, CLOSED + "\nthink_s = 1e9", "workload.think_s: the last request arrives after 57,870 days, at most"),
        (CLOSED, POISSON + "1e-300", "workload.rate_per_s: Input should be greater than or equal to 0.000001"),
        (CLOSED, POISSON + "1e-6", "days, at most 30 are simulated"),
        (CLOSED, POISSON + "1e300", "workload.rate_per_s: Input should be less than or equal to 1000000000"),
        (CLOSED, BURSTS.format(1e-6, 1e-6, 1e-6, 1e-6), "workload: a calm period has 1e-12 requests on average"),
        (CLOSED, BURSTS.format(1e6, 1.0, 1e6, 1.0), "workload: a calm period has 1e+12 requests on average"),
        (CLOSED, 'kind = "closed"\nnum_clients = 2_000_000\nnum_requests = 2_000_000', "edge.count: 4 drafters, 1 ver"),
        (LENGTHS, f"prompt = 40, answer = {HUGE}, max_tokens = {HUGE}", "cloud.kv_tokens: must be at least 100000"),
        ("[policies]", "[[change]]\nat_s = 1.0\npass_slowdown = 1e-300\n[policies]", "change.0.pass_slowdown: Input"),
        ("[policies]", "[[change]]\nat_s = 1e300\npass_slowdown = 2.0\n[policies]", "change.0.at_s: Input should be"),
        ("[policies]", "[objective]\ntpot_ms = 1e-300\n[policies]", "objective.tpot_ms: Input should be greater"),
    ],
)  # fmt: skip
def test_an_extreme_input_is_refused_in_one_line_that_names_the_key(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = written(tmp_path, "", (old, new))
    with pytest.raises(BadScenario) as refused:
        make_fleet(read_scenario(path), tmp_path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rtt_ms = 20", "rtt_ms = 60_000"),
        ("rate = 0.8", "rate = 0"),
        ("base_ms = 15.0, token_ms = 0.5", "base_ms = 0.001"),
        ("step_ms = 8.0", "step_ms = 0.001"),
        (CLOSED, POISSON + "1e9"),
        ("rtt_ms = 20", "rtt_ms = 20, stall_rate = 1, stall_ms = 10_000"),
    ],
)
def test_an_extreme_input_within_the_bounds_ends(tmp_path: Path, old: str, new: str) -> None:
    path = written(tmp_path, "", (old, new))
    cell = Cell(read_scenario(path), path, "", "")
    assert run_fleet(cell, fleet_of(cell)).num_requests == 40


@pytest.mark.parametrize(
    ("module", "name", "limit", "told"),
    [
        (engine, "LONGEST_MS", 500.0, "workload: after 0 days of virtual time"),
        (worlds, "MOST_BYTES", 1000, "workload: more than 256 requests are open at once"),
    ],
)
def test_a_run_that_outgrows_its_limits_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, limit: float, told: str
) -> None:
    path = written(tmp_path, "", (CLOSED, POISSON.replace("40", "2000") + "1000"))
    cell = Cell(read_scenario(path), path, "seed = 3", "")
    fleet = fleet_of(cell)
    monkeypatch.setattr(module, name, limit)
    with pytest.raises(BadScenario) as refused:
        run_fleet(cell, fleet)
    assert str(refused.value).startswith(f"{path}: {told}")
    assert str(refused.value).endswith("(with seed = 3)")
