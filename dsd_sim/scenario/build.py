"""From a scenario to a fleet that is ready to run.

Invariant: all randomness comes from the scenario's seed, one stream for each purpose. So all policies meet the same
requests and guesses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from awc.registry import policy_kind
from dsd_sim.engine import cloud
from dsd_sim.engine.fleet import SimFleet
from dsd_sim.engine.world import MOST_BYTES, NOBODY, World, make_world, world_bytes
from dsd_sim.scenario.changes import changes_of, write_link
from dsd_sim.scenario.demand import Closed, Workload
from dsd_sim.scenario.guesses import acceptances_of, lookups_of
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.scenario.table import LEAST_MS, LONGEST_RUN_S, BadScenario, naming_key
from dsd_sim.scenario.workload import LoadChange, Requests, make_requests, with_joining_clients, with_rate_changes
from shared.data.profiles import read_profile
from shared.policies.kv_cache import round_to_kv_step
from shared.policies.routing import ROUTERS

WORKLOAD, PLACES, THINKING, FAILING = 0, 1, 2, 3  # random streams; the fleet uses the seed itself
BATCHING = {"fifo": cloud.FIFO, "lab": cloud.LAB, "tetris": cloud.TETRIS, "worth": cloud.WORTH}


def make_fleet(scenario: Scenario, folder: Path, num_logged: int = 0) -> SimFleet:
    """`folder`: base of the scenario's file names. `num_logged`: log entries to keep. Raises BadScenario."""
    requests = make_requests(scenario.workload, folder, _stream(scenario, WORKLOAD))
    loads = [LoadChange(each.at_s * 1000, each.load) for each in scenario.change if each.load is not None]
    is_closed = isinstance(scenario.workload, Closed)
    requests = with_joining_clients(requests, loads) if is_closed else with_rate_changes(requests, loads)
    _check_length_of_run(requests, scenario.workload)
    num_devices = sum(edge.count for edge in scenario.edge)
    num_nodes = sum(group.count for group in scenario.cloud)
    _check_lengths(requests, scenario)
    # A first estimate: a client's session may still be open at its drafter when the next one begins.
    num_likely = 2 * (int(requests.client.max()) + 1) + 16 if isinstance(scenario.workload, Closed) else 256
    num_slots = min(len(requests.prompt), num_likely)
    size = max(num_devices, 1), num_nodes, len(requests.prompt), num_slots, int(requests.answer.max())
    _check_size(*size)
    world = make_world(*size, scenario.seed, num_logged)
    _write_devices(world, scenario, folder)
    _write_nodes(world, scenario, folder)
    _write_machine(world, scenario, folder)
    choice = scenario.policies.choice
    for name in ("window", "chunk", "free_run"):
        world.pairs[name] = getattr(choice, name)
    _write_requests(world, requests, _devices_of(requests, scenario))
    think_ms = scenario.workload.think_s * 1000 if isinstance(scenario.workload, Closed) else 0.0
    thinking = _stream(scenario, THINKING)
    return SimFleet(
        world,
        ROUTERS[scenario.policies.routing](),
        acceptances_of(scenario, folder),
        policy_kind(scenario.policies.windows)(choice),
        scenario.seed,
        groups=np.array([group for group, edge in enumerate(scenario.edge) for _ in range(edge.count)], np.int64),
        colocated=scenario.policies.colocated,
        lookups=lookups_of(scenario, folder),
        shares_machine=scenario.machine is not None,
        changes=changes_of(scenario, folder, _stream(scenario, FAILING)),
        num_gateways=scenario.policies.num_gateways,
        max_sessions=scenario.policies.max_sessions,
        think=lambda: float(thinking.exponential(think_ms)) if think_ms else 0.0,
    )


def _stream(scenario: Scenario, which: int) -> np.random.Generator:
    return np.random.default_rng([scenario.seed, which])


def _write_devices(world: World, scenario: Scenario, folder: Path) -> None:
    start = 0
    for number, edge in enumerate(scenario.edge):
        devices = world.devices[start : start + edge.count]
        start += edge.count
        with naming_key(f"edge.{number}.profile"):
            times = edge.times or read_profile(folder / str(edge.profile)).step_times
        if times.step_ms < LEAST_MS:
            key = f"edge.{number}." + (f"profile: {edge.profile}" if edge.times is None else "times")
            raise BadScenario(f"{key}.step_ms: must be at least {LEAST_MS}, got {times.step_ms:g}")
        devices["step_ms"], devices["step_ms_per_1000"] = times.step_ms, times.step_ms_per_1000
        devices["fed_ms"], devices["feed_tokens"] = times.fed_ms, edge.feed_tokens
        devices["session_ms"], devices["max_rows"] = times.session_ms or 0.0, times.max_rows
        write_link(devices, edge.link)


def _write_nodes(world: World, scenario: Scenario, folder: Path) -> None:
    start = 0
    for number, group in enumerate(scenario.cloud):
        nodes = world.nodes[start : start + group.count]
        start += group.count
        with naming_key(f"cloud.{number}.profile"):
            times = group.times or read_profile(folder / str(group.profile)).pass_times
        if (shortest_ms := times.pass_ms(1, 1, 0)) < LEAST_MS:
            key = f"cloud.{number}." + (f"profile: {group.profile}" if group.times is None else "times")
            raise BadScenario(f"{key}: a pass of one token must take at least {LEAST_MS} ms, got {shortest_ms:g}")
        nodes["weights"], nodes["noise"] = times.weights, group.noise
        nodes["extra_ms"][:, : len(times.extra_ms)] = times.extra_ms
        nodes["token_budget"], nodes["prefill_chunk"] = group.token_budget, group.prefill_chunk
        nodes["kv_tokens"] = nodes["free_kv"] = group.kv_tokens
        nodes["delay_ms"], nodes["batching"] = group.hop_ms, BATCHING[scenario.policies.batching]
        nodes["lookup_tokens"] = scenario.lookup.tokens if scenario.lookup is not None else 0
        if scenario.policies.colocated:
            with naming_key(f"cloud.{number}.draft_profile"):
                draft = group.draft_times or read_profile(folder / str(group.draft_profile)).step_times
            nodes["draft_window"], nodes["draft_ms"] = scenario.policies.window, draft.step_ms
            nodes["draft_ms_per_session"] = draft.fed_ms if draft.session_ms is None else draft.session_ms
            nodes["draft_ms_per_1000"] = draft.step_ms_per_1000


def _write_machine(world: World, scenario: Scenario, folder: Path) -> None:
    if scenario.machine is None:
        return
    with naming_key("machine.profile"):
        times = scenario.machine.times or read_profile(folder / str(scenario.machine.profile)).machine_times
    world.nodes["weights"][:, :2] += times.pass_gap_ms, times.session_gap_ms
    world.devices["step_ms"] += times.step_gap_ms
    for name in ("request_ms", "message_ms", "pass_slowdown", "step_slowdown"):
        world.clock[name] = getattr(times, name)


def _check_length_of_run(requests: Requests, workload: Workload) -> None:
    key, last_s = "workload", float(requests.arrival_ms.max()) / 1000
    if isinstance(workload, Closed) and not last_s:
        key, last_s = "workload.think_s", workload.think_s * workload.num_requests / workload.num_clients
    if last_s > LONGEST_RUN_S:
        days, most = last_s / 86_400, LONGEST_RUN_S / 86_400
        raise BadScenario(f"{key}: the last request arrives after {days:,.0f} days, at most {most:.0f} are simulated")


def _check_size(num_devices: int, num_nodes: int, num_requests: int, num_slots: int, max_tokens: int) -> None:
    num_bytes = world_bytes(num_devices, num_nodes, num_requests, num_slots, max_tokens)
    if num_bytes > MOST_BYTES:
        fleet = f"{num_devices:,} drafters, {num_nodes:,} verifiers and {num_requests:,} requests"
        largest = f"{num_slots:,} at once of up to {max_tokens:,} tokens, take {num_bytes / (1 << 30):,.1f} GiB"
        limit = f"at most {MOST_BYTES >> 30} GiB: lower edge.count, cloud.count or the workload"
        raise BadScenario(f"edge.count: {fleet}, {largest}, {limit}")


def _check_lengths(requests: Requests, scenario: Scenario) -> None:
    room = min(group.kv_tokens for group in scenario.cloud)
    longest = int((requests.prompt + requests.max_tokens).max())
    if round_to_kv_step(longest) > room:
        needed = f"the longest request has {longest} tokens, prompt and max_tokens"
        raise BadScenario(f"cloud.kv_tokens: must be at least {round_to_kv_step(longest)}, got {room}: {needed}")


def _write_requests(world: World, requests: Requests, devices: NDArray[np.int64]) -> None:
    records = world.requests
    records["arrival_ms"], records["prompt"], records["tokens"] = requests.arrival_ms, requests.prompt, requests.answer
    records["max_tokens"], records["client"], records["device"] = requests.max_tokens, requests.client, devices


def _devices_of(requests: Requests, scenario: Scenario) -> NDArray[np.int64]:
    """The device of each request: drawn by weight, from its device_tier if it has one. A client keeps its device."""
    num = len(requests.prompt)
    if not scenario.policies.drafting:
        return np.full(num, NOBODY)
    rng = _stream(scenario, PLACES)
    tiers = np.repeat([edge.name for edge in scenario.edge], [edge.count for edge in scenario.edge])
    weights = np.repeat([edge.weight for edge in scenario.edge], [edge.count for edge in scenario.edge])
    if any(tier is not None and tier not in tiers for tier in requests.tier):
        missing = next(tier for tier in requests.tier if tier is not None and tier not in tiers)
        raise BadScenario(f"edge: no edge has the name {missing!r}, which is a device_tier of the trace")
    if (requests.client >= 0).any():  # clients that start together are spread over the devices by weight, evenly
        starts = requests.arrival_ms[: int(requests.client.max()) + 1]  # of clients, which make the first requests
        sizes = np.unique(starts, return_counts=True)[1]
        places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        return np.searchsorted(np.cumsum(weights) / weights.sum(), places)[requests.client]
    devices = rng.choice(len(tiers), num, p=weights / weights.sum())
    for index, tier in enumerate(requests.tier):
        if tier is not None:
            of_tier = np.flatnonzero(tiers == tier)
            devices[index] = rng.choice(of_tier, p=weights[of_tier] / weights[of_tier].sum())
    return devices
