"""The measured part of a run: rates of a closed loop are those of its steady state, and no warm-up means all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsd_sim.engine.world import REQUEST
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.measured import MeasuredPart, Totals, share_between
from dsd_sim.studies.report import SimReport, report_of

CLIENTS, TOKENS, PASS_MS = 16, 50, 20.0


def report(warm_up: float, num_requests: int = 20 * CLIENTS, workload: dict[str, Any] | None = None) -> SimReport:
    """Clients that never think, on one verifier whose passes take all of them; target-only."""
    closed = {"kind": "closed", "num_clients": CLIENTS}
    lengths = {"prompt": 8, "answer": {"low": TOKENS // 2, "high": 3 * TOKENS // 2}}
    content = {
        "name": "closed",
        "workload": (workload or closed) | {"num_requests": num_requests, "lengths": lengths},
        "cloud": ({"count": 1, "times": {"base_ms": PASS_MS}, "token_budget": 4096},),
        "policies": {"drafting": False},
    }
    scenario = Scenario.model_validate(content)
    fleet = make_fleet(scenario, Path())
    measured = MeasuredPart(warm_up)
    fleet.on_arrival = measured.arrive
    fleet.run()
    return report_of(scenario, fleet, measured)


def test_the_rate_of_a_closed_loop_is_that_of_its_steady_state() -> None:
    steady, whole = report(0.1), report(0.0)
    expected = CLIENTS / PASS_MS * 1000  # a token of each client in each pass
    assert steady.tokens_per_s == pytest.approx(expected, rel=0.02)
    assert whole.tokens_per_s < 0.97 * expected, "clients run out of requests at the end"
    assert steady.batch == pytest.approx(CLIENTS, rel=0.02)
    assert steady.verifier_utilisation == pytest.approx(1.0, abs=1e-3)


def test_the_first_requests_are_left_out_and_all_others_count() -> None:
    steady, whole = report(0.1), report(0.0)
    assert whole.num_requests == 20 * CLIENTS
    assert 0.88 * whole.num_requests <= steady.num_requests <= 0.9 * whole.num_requests + 1
    assert steady.virtual_s < whole.virtual_s
    assert steady.num_windows < whole.num_windows


def test_an_open_loop_is_served_at_its_rate() -> None:
    steady = report(0.1, 2000, {"kind": "poisson", "rate_per_s": 5.0})
    assert steady.requests_per_s == pytest.approx(5.0, rel=0.08)


def test_requests_that_all_arrive_at_once_are_measured_from_the_first_to_the_last_token() -> None:
    assert report(0.1, CLIENTS).encode() == report(0.0, CLIENTS).encode()


def test_an_answer_counts_by_its_share_between_two_times() -> None:
    requests = np.zeros(5, REQUEST)
    requests["first_ms"] = [0.0, 10.0, 15.0, 20.0, 12.0]
    requests["done_ms"] = [40.0, 20.0, 25.0, 30.0, 12.0]
    assert share_between(10.0, 20.0, requests).tolist() == [0.25, 1.0, 0.5, 0.0, 1.0]


def test_totals_since_an_earlier_time_are_differences() -> None:
    assert Totals(10.0, 5, 4, 3.0, 2.0, 1.0, 0.5).since(Totals(4.0, 1, 1, 1.0, 1.0, 0.5, 0.5)) == Totals(
        6.0, 4, 3, 2.0, 1.0, 0.5, 0.0
    )
