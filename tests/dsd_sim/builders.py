"""Builders of small simulated fleets."""

from __future__ import annotations

from typing import Any

import numpy as np

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice
from dsd_sim.engine import cloud
from dsd_sim.engine.acceptance import Independent
from dsd_sim.engine.fleet import SimFleet
from dsd_sim.engine.world import World, make_world
from shared.policies.routing import ROUTERS

SLIDING = WindowChoice(window=8, chunk=2, free_run=True)


def stop_and_wait(window: int) -> WindowChoice:
    return WindowChoice(window=window, chunk=window, free_run=False)


def a_world(
    num_requests: int,
    *,
    num_devices: int = 1,
    num_nodes: int = 1,
    num_slots: int | None = None,
    tokens: int = 100,
    choice: WindowChoice = SLIDING,
    rtt_ms: float = 10.0,
    step_ms: float = 10.0,
    weights: tuple[float, ...] = (20.0, 0, 0, 0, 0, 0, 0),
    batching: int = cloud.FIFO,
    seed: int = 1,
    num_logged: int = 0,
) -> World:
    """All requests arrive at 0, from device 0, with a prompt of 16 tokens. Only the given times are above 0."""
    world = make_world(num_devices, num_nodes, num_requests, num_slots or num_requests, tokens, seed, num_logged)
    requests, devices, nodes = world.requests, world.devices, world.nodes
    requests["prompt"], requests["tokens"], requests["max_tokens"], requests["client"] = 16, tokens, tokens, -1
    devices["step_ms"], devices["feed_tokens"] = step_ms, 64
    devices["delay_ms"] = rtt_ms / 2
    nodes["token_budget"], nodes["prefill_chunk"], nodes["batching"] = 4096, 256, batching
    nodes["kv_tokens"] = nodes["free_kv"] = 1 << 40
    nodes["weights"] = weights
    for name in ("window", "chunk", "free_run"):
        world.pairs[name] = getattr(choice, name)
    return world


def a_fleet(world: World, *, rate: float = 0.8, seed: int = 1, **options: Any) -> SimFleet:
    policy = options.pop("policy", None) or StaticPolicy(choice_of(world))
    acceptance = options.pop("acceptance", None) or Independent(rate)
    acceptances = [acceptance] * len(world.devices)
    return SimFleet(world, ROUTERS[options.pop("router", "jsq")](), acceptances, policy, seed, **options)


def choice_of(world: World) -> WindowChoice:
    pair = world.pairs[0, 0]
    return WindowChoice(int(pair["window"]), int(pair["chunk"]), bool(pair["free_run"]))


def tpot_ms(world: World) -> np.ndarray[Any, np.dtype[np.float64]]:
    requests = world.requests
    spans: np.ndarray[Any, np.dtype[np.float64]] = requests["done_ms"] - requests["first_ms"]
    return spans / (requests["tokens"] - 1)


def check_fates(world: World) -> None:
    """All requests are answered, and each of their guesses has one fate."""
    requests = world.requests
    assert (requests["done_ms"] > 0).all()
    fates = sum(requests[name] for name in ("accepted", "rejected", "late", "discarded"))
    assert (requests["drafted"] == fates).all()
    assert requests["drafted"].sum() > 0
