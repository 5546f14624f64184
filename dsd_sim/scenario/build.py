"""From a scenario to a fleet that is ready to run.

Invariant: everything random is drawn from the scenario's seed, each kind of thing from a stream of its own, so that a
change of policy meets the same requests and the same guesses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from awc.policy import WindowChoice
from awc.registry import POLICIES
from dsd_sim.engine import cloud
from dsd_sim.engine.fleet import Fleet
from dsd_sim.engine.world import NOBODY, World, make_world
from dsd_sim.scenario.changes import happenings_of, write_link
from dsd_sim.scenario.demand import Closed
from dsd_sim.scenario.guesses import acceptances_of
from dsd_sim.scenario.scenario import Cloud, Scenario
from dsd_sim.scenario.table import BadScenario
from dsd_sim.scenario.workload import LoadChange, Requests, hurried, joined, make_requests
from shared.data.profiles import PassTimes, StepTimes, read_profile
from shared.policies.batching import round_to_kv_step
from shared.policies.routing import ROUTERS

WORKLOAD, PLACES, THINKING, FAILING = 0, 1, 2, 3  # streams of random numbers; the fleet has the seed itself
BATCHING = {"fifo": cloud.FIFO, "lab": cloud.LAB, "tetris": cloud.TETRIS, "worth": cloud.WORTH}


def make_fleet(scenario: Scenario, folder: Path, num_logged: int = 0) -> Fleet:
    """`folder`: where the scenario's files are looked for; num_logged: room of the world's log. Raises BadScenario."""
    requests = make_requests(scenario.workload, folder, _stream(scenario, WORKLOAD))
    loads = [LoadChange(each.at_s * 1000, each.load) for each in scenario.change if each.load is not None]
    requests = (joined if isinstance(scenario.workload, Closed) else hurried)(requests, loads)
    num_devices = sum(edge.count for edge in scenario.edge)
    num_nodes = sum(part.count for part in scenario.cloud)
    _check_lengths(requests, scenario)
    # For a beginning; a session may still be under way at its drafter when its client's next one begins.
    num_likely = 2 * (int(requests.client.max()) + 1) + 16 if isinstance(scenario.workload, Closed) else 256
    num_slots = min(len(requests.prompt), num_likely)
    world = make_world(
        max(num_devices, 1),
        num_nodes,
        len(requests.prompt),
        num_slots,
        int(requests.answer.max()),
        scenario.seed,
        num_logged,
    )
    _write_devices(world, scenario, folder)
    _write_nodes(world, scenario, folder)
    choice = _write_pairs(world, scenario)
    _write_requests(world, requests, _devices_of(requests, scenario))
    think_ms = scenario.workload.think_s * 1000 if isinstance(scenario.workload, Closed) else 0.0
    thinking = _stream(scenario, THINKING)
    return Fleet(
        world,
        ROUTERS[scenario.policies.routing](),
        acceptances_of(scenario, folder),
        POLICIES[scenario.policies.windows](choice),
        scenario.seed,
        groups=np.array([group for group, edge in enumerate(scenario.edge) for _ in range(edge.count)], np.int64),
        colocated=scenario.policies.colocated,
        happenings=happenings_of(scenario, folder, _stream(scenario, FAILING)),
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
        times = _step_times(edge.times, edge.profile, folder, f"edge.{number}.profile")
        if times.step_ms == 0:
            key = f"edge.{number}." + (f"profile: {edge.profile}" if edge.times is None else "times")
            raise BadScenario(f"{key}.step_ms: a draft step takes more than 0 ms")
        devices["step_ms"], devices["step_ms_per_1000"] = times.step_ms, times.step_ms_per_1000
        devices["fed_ms"], devices["feed_tokens"] = times.fed_ms, edge.feed_tokens
        write_link(devices, edge.link)


def _write_nodes(world: World, scenario: Scenario, folder: Path) -> None:
    start = 0
    for number, part in enumerate(scenario.cloud):
        nodes = world.nodes[start : start + part.count]
        start += part.count
        times = _pass_times(part, folder, f"cloud.{number}.profile")
        nodes["weights"], nodes["noise"] = times.weights, part.noise
        nodes["token_budget"], nodes["prefill_chunk"] = part.token_budget, part.prefill_chunk
        nodes["kv_tokens"] = nodes["free_kv"] = part.kv_tokens
        nodes["delay_ms"], nodes["batching"] = part.hop_ms, BATCHING[scenario.policies.batching]
        if scenario.policies.colocated:
            draft = _step_times(part.draft_times, part.draft_profile, folder, f"cloud.{number}.draft_profile")
            nodes["draft_window"], nodes["draft_ms"] = scenario.policies.window, draft.step_ms
            nodes["draft_ms_per_session"], nodes["draft_ms_per_1000"] = draft.fed_ms, draft.step_ms_per_1000


def _step_times(times: StepTimes | None, profile: str | None, folder: Path, key: str) -> StepTimes:
    """What is given, here or in a file that `key` names."""
    if times is not None:
        return times
    assert profile is not None
    try:
        return read_profile(folder / profile).step_times
    except (ValueError, OSError) as error:
        raise BadScenario(f"{key}: {error}") from error


def _pass_times(part: Cloud, folder: Path, key: str) -> PassTimes:
    if part.times is not None:
        return part.times
    assert part.profile is not None
    try:
        return read_profile(folder / part.profile).pass_times
    except (ValueError, OSError) as error:
        raise BadScenario(f"{key}: {error}") from error


def _write_pairs(world: World, scenario: Scenario) -> WindowChoice:
    choice = scenario.policies.choice
    for name in ("window", "chunk", "free_run"):
        world.pairs[name] = getattr(choice, name)
    return choice


def _check_lengths(requests: Requests, scenario: Scenario) -> None:
    room = min(part.kv_tokens for part in scenario.cloud)
    longest = int((requests.prompt + requests.max_tokens).max())
    if round_to_kv_step(longest) > room:
        raise BadScenario(f"cloud.kv_tokens: {room} hold no request of {longest} tokens, prompt and max_tokens")


def _write_requests(world: World, requests: Requests, devices: NDArray[np.int64]) -> None:
    records = world.requests
    records["arrival_ms"], records["prompt"], records["tokens"] = requests.arrival_ms, requests.prompt, requests.answer
    records["max_tokens"], records["client"], records["device"] = requests.max_tokens, requests.client, devices


def _devices_of(requests: Requests, scenario: Scenario) -> NDArray[np.int64]:
    """Which device drafts for each request: drawn by weight, of its tier where it has one. A client keeps its own."""
    num = len(requests.prompt)
    if not scenario.policies.drafting:
        return np.full(num, NOBODY)
    rng = _stream(scenario, PLACES)
    tiers = np.repeat([edge.name for edge in scenario.edge], [edge.count for edge in scenario.edge])
    weights = np.repeat([edge.weight for edge in scenario.edge], [edge.count for edge in scenario.edge])
    if any(tier is not None and tier not in tiers for tier in requests.tier):
        missing = next(tier for tier in requests.tier if tier is not None and tier not in tiers)
        raise BadScenario(f"edge: the trace names the device_tier {missing!r}, and no edge has that name")
    if (requests.client >= 0).any():  # those that come together are spread as evenly as the devices' weights allow
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
