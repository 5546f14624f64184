"""Failures and changes: every request completes, every guess is counted, and their effects are as expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awc.policies.ladder import LadderPolicy
from awc.policy import DEFAULT_CHOICE, WindowChoice
from awc.registry import POLICIES
from dsd_sim.engine.fleet import REPORT_MS, FleetChange, SimFleet
from dsd_sim.engine.world import STEER
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import scenario_of
from dsd_sim.scenario.workload import LoadChange, Requests, with_joining_clients, with_rate_changes
from dsd_sim.studies.report import report_of
from shared.protocol.messages import PairReport
from tests.dsd_sim.builders import a_fleet, a_world, stop_and_wait

FATES = ("accepted", "rejected", "late", "discarded")


def scenario(**tables: Any) -> dict[str, Any]:
    lengths = {"prompt": 40, "answer": {"low": 20, "high": 90}, "max_tokens": 100}
    return {
        "name": "failing",
        "seed": 5,
        "workload": {"kind": "poisson", "rate_per_s": 6.0, "num_requests": 150, "lengths": lengths},
        "edge": [
            {
                "count": 6,
                "times": {"step_ms": 8.0},
                "link": {"rtt_ms": 20, "jitter_ms": 3.0},
                "guesses": {"kind": "independent", "rate": 0.8},
            }
        ],
        "cloud": [{"count": 3, "times": {"base_ms": 15.0, "token_ms": 0.5}}],
    } | tables


def run(content: dict[str, Any], num_logged: int = 0) -> SimFleet:
    fleet = make_fleet(scenario_of(content, Path("test.toml")), Path(), num_logged)
    fleet.run()
    return fleet


def failure(part: str, at_s: float = 4.0, for_s: float = 8.0, share: float = 0.5) -> dict[str, Any]:
    some = {} if part == "controller" else {"share": share}
    return {"part": part, "at_s": at_s, "for_s": for_s} | some


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(
    "parts", [("drafters",), ("verifiers",), ("links",), ("controller",), ("drafters", "verifiers")]
)
def test_with_every_failure_requests_complete_and_guesses_have_one_fate(
    parts: tuple[str, ...], share: float, waits: bool
) -> None:
    failures = [failure(part, at_s=4.0 + 1.3 * number, share=share) for number, part in enumerate(parts)]
    policies = {"windows": "ladder", "window": 4} | ({"stop_and_wait": True} if waits else {})
    world = run(scenario(failure=failures, policies=policies)).world
    requests = world.requests
    assert (requests["done_ms"] >= requests["first_ms"]).all()
    assert (requests["first_ms"] > requests["arrival_ms"]).all()
    assert requests["drafted"].sum() > 0
    assert (requests["drafted"] == sum(requests[name] for name in FATES)).all()
    assert world.nodes["num_committed"].sum() == requests["tokens"].sum()  # no token is repeated or missing
    assert (world.nodes["num_sessions"] == 0).all()
    assert (world.nodes["free_kv"] == world.nodes["kv_tokens"]).all()
    assert (world.devices["num_sessions"] == 0).all()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", ["poisson", "closed"])
def test_requests_complete_when_links_are_cut_for_a_minute(kind: str, waits: bool) -> None:
    """Longer than a drafter resends, and with more messages in flight than the world has room for at first."""
    workload = {"kind": kind, "num_requests": 200, "lengths": {"prompt": 40, "answer": 900, "max_tokens": 900}}
    workload |= {"rate_per_s": 1.0} if kind == "poisson" else {"num_clients": 8}
    policies = {"window": 4, "stop_and_wait": True} if waits else {"window": 8}
    cut = failure("links", at_s=5.0, for_s=60.0, share=1.0)
    world = run(scenario(workload=workload, policies=policies, failure=[cut])).world
    requests = world.requests
    assert (requests["done_ms"] >= requests["first_ms"]).all()
    assert (requests["drafted"] == sum(requests[name] for name in FATES)).all()
    assert world.nodes["num_committed"].sum() == requests["tokens"].sum()
    during = (requests["arrival_ms"] > 8000) & (requests["done_ms"] < 60_000)
    assert during.any()  # the verifiers go on alone


def test_a_device_with_two_failures_is_back_when_both_are_over() -> None:
    world = a_world(1, tokens=2500, rtt_ms=10, step_ms=5)
    changes = [
        FleetChange(1000, lambda f: f.lose("drafters", [0])),
        FleetChange(2000, lambda f: f.lose("drafters", [0])),
        FleetChange(6000, lambda f: f.restore("drafters", [0])),
        FleetChange(20_000, lambda f: f.restore("drafters", [0])),
    ]
    drafted: list[int] = []
    probes = [FleetChange(t, lambda f: drafted.append(int(f.world.requests[0]["drafted"]))) for t in (3000, 19_000)]
    a_fleet(world, rate=1.0, changes=[*changes, *probes]).run()
    assert drafted[0] == drafted[1] < world.requests[0]["drafted"]


def test_a_failure_changes_the_report_and_equal_seeds_give_equal_bytes() -> None:
    def report(**tables: Any) -> bytes:
        content = scenario(**tables)
        return report_of(scenario_of(content, Path("x")), run(content)).encode()

    once = report(failure=[failure("verifiers")])
    assert once == report(failure=[failure("verifiers")]) != report()


def test_a_session_that_lost_its_drafter_is_served_target_only_until_another_joins() -> None:
    """One device of two fails in the middle of a long answer; the gateway notices after three heartbeats."""
    world = a_world(1, num_devices=2, tokens=1500, rtt_ms=10, step_ms=5)
    fleet = a_fleet(world, rate=1.0, changes=[FleetChange(2000, lambda f: f.lose("drafters", [0]))])
    fleet.groups = np.zeros(2, np.int64)
    drafted: list[int] = []
    fleet.changes = [*fleet.changes, *(FleetChange(t, lambda f: drafted.append(busy(f))) for t in (3900, 9000))]
    fleet.run()
    request = world.requests[0]
    assert drafted == [0, 1]  # steps of the other device: none before it with_joining_clients
    assert request["device"] == 1
    assert request["drafted"] == sum(request[name] for name in FATES)
    num_alone = (5000 - 2000) / 20  # tokens at most without a drafter, at 20 ms a pass
    assert request["done_ms"] < 2000 + 3000 + 0.5 * 20 * (1500 - num_alone)


def busy(fleet: SimFleet) -> int:
    return int(fleet.world.devices[1]["busy_ms"] > 0)


def test_colocated_guesses_are_counted_across_failures() -> None:
    content = scenario(policies={"colocated": True, "window": 4}, failure=[failure("verifiers")])
    content["cloud"][0]["draft_times"] = {"step_ms": 2.0}
    requests = run(content).world.requests
    assert (requests["done_ms"] != run(content | {"failure": []}).world.requests["done_ms"]).any()
    own = (
        requests["tokens"] - requests["accepted"] - requests["recovered"] - requests["bonus"]
    )  # of rows without guesses
    assert set(own.tolist()) <= {1, 2}
    assert (requests["drafted"] == sum(requests[name] for name in FATES)).all()


def test_without_another_device_a_session_gets_its_own_back() -> None:
    world = a_world(1, tokens=1500, rtt_ms=10, step_ms=5)
    changes = [
        FleetChange(1000, lambda f: f.lose("drafters", [0])),
        FleetChange(9000, lambda f: f.restore("drafters", [0])),
    ]
    fleet = a_fleet(world, rate=1.0, changes=changes)
    fleet.run()
    request = world.requests[0]
    num_alone = 8000 / 20
    assert request["device"] == 0
    assert request["accepted"] + request["late"] == pytest.approx(1500 - num_alone, abs=80)
    assert request["done_ms"] < 9000 + 0.5 * 20 * (1500 - num_alone)


def test_in_stop_and_wait_the_lease_ends_the_wait_for_a_lost_drafter() -> None:
    world = a_world(1, tokens=400, choice=stop_and_wait(4), rtt_ms=10, step_ms=5)
    world.requests["device"] = 0
    fleet = a_fleet(world, rate=1.0, changes=[FleetChange(1000, lambda f: f.lose("drafters", [0]))])
    committed: list[int] = []
    times = (1100, 2950, 3500)
    probes = [FleetChange(t, lambda f: committed.append(int(f.world.nodes[0]["num_committed"]))) for t in times]
    fleet.changes = [*fleet.changes, *probes]
    fleet.run()
    assert committed[0] == committed[1]  # it waits for two seconds
    assert committed[2] >= committed[1] + 20  # then a token each 20 ms
    assert world.requests[0]["done_ms"] > 0


def test_requests_wait_while_no_verifier_works() -> None:
    fleet = run(scenario(failure=[failure("verifiers", at_s=3.0, for_s=10.0, share=1.0)]))
    requests = fleet.world.requests
    during = (requests["arrival_ms"] > 4000) & (requests["arrival_ms"] < 9000)
    assert during.sum() > 10
    assert (requests["first_ms"][during] > 13_000).all()


def test_a_cut_link_delays_what_is_sent_on_it() -> None:
    world = a_world(1, tokens=200, choice=stop_and_wait(4), rtt_ms=10, step_ms=5)
    quiet = a_world(1, tokens=200, choice=stop_and_wait(4), rtt_ms=10, step_ms=5)
    a_fleet(quiet, rate=1.0).run()
    a_fleet(world, rate=1.0, changes=[FleetChange(500, lambda f: f.cut_links([0], 1500))]).run()
    delay = world.requests[0]["done_ms"] - quiet.requests[0]["done_ms"]
    assert delay == pytest.approx(1000, abs=60)


def test_without_a_controller_windows_hold_for_a_while_and_then_the_default_applies() -> None:
    world = a_world(4, tokens=20_000, choice=WindowChoice(4, 4, free_run=False), rtt_ms=10, step_ms=5)
    policy = LadderPolicy(WindowChoice(4, 4, free_run=False))
    fleet = a_fleet(world, rate=0.97, policy=policy, changes=[FleetChange(5000, lambda f: f.stop_controller(60_000))])
    windows: list[tuple[int, bool]] = []
    probes = [FleetChange(t, lambda f: windows.append(pair(f))) for t in (4900, 34_000, 36_000, 70_000)]
    fleet.changes = [*fleet.changes, *probes]
    fleet.run()
    assert windows[0] == windows[1] != windows[2]
    assert windows[2] == (DEFAULT_CHOICE.window, True)
    assert windows[3] != windows[2]  # the controller is back


def pair(fleet: SimFleet) -> tuple[int, bool]:
    found = fleet.world.pairs[0, 0]
    return int(found["window"]), bool(found["free_run"])


def test_a_change_of_a_link_holds_from_its_time_on() -> None:
    """Stop-and-wait with right guesses: 20 rounds per answer, each RTT + 20 + 4 * 5 ms for 5 tokens."""
    content = scenario(
        workload={"kind": "closed", "num_clients": 1, "num_requests": 40, "lengths": {"prompt": 8, "answer": 100}},
        edge=[{"count": 1, "times": {"step_ms": 5.0}, "link": {"rtt_ms": 10},
               "guesses": {"kind": "independent", "rate": 1.0}}],
        cloud=[{"count": 1, "times": {"base_ms": 20.0}}],
        policies={"stop_and_wait": True, "window": 4},
        change=[{"at_s": 20.0, "link": {"rtt_ms": 80}}],
    )  # fmt: skip
    requests = run(content).world.requests
    tpot = (requests["done_ms"] - requests["first_ms"]) / 99
    before, after = requests["done_ms"] < 20_000, requests["arrival_ms"] > 20_000
    assert np.allclose(tpot[before], 19 * (10 + 20 + 20) / 99, rtol=0.05)
    assert np.allclose(tpot[after], 19 * (80 + 20 + 20) / 99, rtol=0.05)


def test_keys_that_a_link_change_does_not_give_keep_their_values() -> None:
    content = scenario()
    content["edge"][0]["link"] = {"rtt_ms": 20, "jitter_ms": 3.0, "bandwidth_mbit": 5.0, "stall_rate": 0.1}
    fleet = run(
        content | {"change": [{"at_s": 1.0, "link": {"stall_rate": 0.2}}, {"at_s": 2.0, "link": {"rtt_ms": 50}}]}
    )
    columns = ("delay_ms", "jitter_ms", "bits_per_ms", "stall_rate", "stall_ms")
    assert {tuple(device[column] for column in columns) for device in fleet.world.devices} == {(25, 3, 5000, 0.2, 200)}


def test_a_report_names_changes_and_failures_after_its_end() -> None:
    content = scenario(
        change=[{"at_s": 3.0, "pass_slowdown": 2.0}, {"at_s": 900.0, "pass_slowdown": 1.0}],
        failure=[failure("links", at_s=800.5), failure("drafters", at_s=2.0)],
    )
    report = report_of(scenario_of(content, Path("test.toml")), run(content))
    assert report.unreached == ("change at 900 s", "failure of links at 800.5 s")


def test_changes_of_speed_and_guesses_hold_from_their_time_on() -> None:
    change = [{"at_s": 10.0, "pass_slowdown": 3.0, "draft_slowdown": 2.0,
               "guesses": {"kind": "independent", "rate": 0.0}}]  # fmt: skip
    content = scenario(change=change)
    content["workload"]["rate_per_s"] = 1.0
    requests = run(content).world.requests
    before, after = requests["done_ms"] < 10_000, requests["arrival_ms"] > 10_000
    assert requests["accepted"][before].sum() > 0
    assert requests["accepted"][after].sum() == 0
    tpot = (requests["done_ms"] - requests["first_ms"]) / (requests["tokens"] - 1)
    assert np.median(tpot[after]) > 3 * np.median(tpot[before])


def test_a_load_divides_the_gaps_between_arrivals() -> None:
    times = np.arange(0.0, 100.0, 10.0)
    columns = [np.ones(len(times), np.int64)] * 4
    requests = Requests(times, columns[0], columns[1], columns[2], columns[3], (None,) * len(times))
    assert with_rate_changes(requests, []).arrival_ms.tolist() == times.tolist()
    changed = with_rate_changes(requests, [LoadChange(30.0, 2.0), LoadChange(45.0, 0.5)])
    assert changed.arrival_ms.tolist() == [0, 10, 20, 30, 35, 40, 45, 65, 85, 105]


def test_clients_that_join_a_closed_loop_start_when_the_load_grows() -> None:
    ones = np.ones(9, np.int64)
    requests = Requests(np.zeros(9), ones, ones, ones, np.arange(9) % 2, (None,) * 9)
    grown = with_joining_clients(requests, [LoadChange(30.0, 1.5), LoadChange(45.0, 3.0)])
    assert grown.client.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert grown.arrival_ms[:6].tolist() == [0, 0, 30, 45, 45, 45]
    assert with_joining_clients(requests, []).client.tolist() == requests.client.tolist()


def test_a_load_of_three_triples_the_clients_of_every_drafter() -> None:
    content = scenario(change=[{"at_s": 2.0, "load": 3.0}])
    lengths = {"prompt": 8, "answer": 50, "max_tokens": 50}
    content["workload"] = {"kind": "closed", "num_clients": 6, "num_requests": 120, "lengths": lengths}
    requests = run(content).world.requests
    asked = requests["arrival_ms"]
    firsts = requests[: 3 * 6]
    assert (asked[:6] < 100).all()
    assert (asked[6:18] == 2000).all()
    assert np.bincount(firsts["device"]).tolist() == [3] * 6
    under_way = [int(((asked <= at) & (requests["done_ms"] > at)).sum()) for at in (1500.0, 3000.0)]
    assert under_way == [6, 18]


def test_decisions_are_logged_when_they_reach_their_device() -> None:
    content = scenario(policies={"windows": "ladder", "window": 8})
    content["edge"][0]["guesses"]["rate"] = 0.99
    world = run(content, num_logged=100_000).world
    steers = world.log[: world.clock[0]["num_logged"]]
    steers = steers[steers["kind"] == STEER]
    assert len(steers) > 0
    assert set(steers["num"]) <= {0, 2, 4, 8, 12, 16}  # pauses, and the ladder's rungs


class CountingPolicy:
    """Decides another window at each report."""

    name = "counting"

    def for_pair(self) -> CountingPolicy:
        self.num = 0
        return self

    def decide(self, seen: PairReport) -> WindowChoice:
        self.num += 1
        return WindowChoice(1 + self.num % 60, 1, free_run=True)


def test_decisions_arrive_in_order_one_round_trip_after_their_reports() -> None:
    world = a_world(1, tokens=200, rtt_ms=600.0, num_logged=1000)
    fleet = a_fleet(world, policy=CountingPolicy())
    fleet.run()
    steers = fleet.world.log[fleet.world.log["kind"] == STEER][: int(world.clock[0]["num_logged"])]
    steers = steers[steers["start"] > 0]
    assert len(steers) > 5
    assert steers["num"].tolist() == [2 + number for number in range(len(steers))]
    assert ((steers["start"] - 600.0) % REPORT_MS == 0).all()


def test_a_cut_link_delays_reports_and_decisions() -> None:
    world = a_world(1, tokens=400, rtt_ms=20.0, num_logged=1000)
    fleet = a_fleet(world, policy=CountingPolicy())
    fleet.changes = [FleetChange(1000.0, lambda fleet: fleet.cut_links([0], 4000.0))]
    fleet.run()
    times = fleet.world.log[(fleet.world.log["kind"] == STEER) & (fleet.world.log["start"] > 0)]["start"]
    assert not ((times > 1020.0) & (times < 4000.0)).any()
    assert (times > 4000.0).any()


def test_the_closed_form_policy_is_close_to_the_best_static_window() -> None:
    def total_ms(policy: str, window: int) -> float:
        world = a_world(40, tokens=400, num_slots=8, choice=stop_and_wait(window), rtt_ms=30, step_ms=7)
        world.requests["client"] = 0
        fleet = a_fleet(world, rate=0.85, policy=POLICIES[policy](stop_and_wait(window)))
        fleet.run()
        return float(world.requests["done_ms"].max())

    best = min(total_ms("static", window) for window in (2, 3, 4, 5, 6, 8, 10, 12, 16))
    assert total_ms("closed-form", 2) < 1.03 * best
