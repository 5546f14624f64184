"""Simulations against closed forms: queues, pipelines, and stop-and-wait speculation."""

from __future__ import annotations

import numpy as np
import pytest

from shared.policies.kv_cache import likely_kv_tokens
from tests.dsd_sim.builders import SLIDING, a_fleet, a_world, stop_and_wait, tpot_ms

SERVICE_MS = 10.0
MEAN_TOKENS, MAX_TOKENS = 40, 240  # of a prompt


def queueing_world(utilisation: float, num_requests: int, seed: int, *, exponential: bool) -> tuple[float, float]:
    """A verifier with KV cache for one session, which it serves in one pass. Returns the mean latency and what
    Pollaczek and Khinchine say of it, in milliseconds."""
    rng = np.random.default_rng(seed)
    lengths = np.full(num_requests, MEAN_TOKENS)
    if exponential:
        lengths = np.clip(np.rint(rng.exponential(MEAN_TOKENS, num_requests)), 1, MAX_TOKENS).astype(np.int64)
    token_ms = SERVICE_MS / MEAN_TOKENS
    world = a_world(num_requests, num_slots=2000, tokens=1, weights=(0, 0, token_ms, 0, 0, 0, 0))
    requests, nodes = world.requests, world.nodes
    requests["device"], requests["prompt"], requests["max_tokens"] = -1, lengths, 1 << 20
    requests["arrival_ms"] = np.cumsum(rng.exponential(SERVICE_MS / utilisation, num_requests))
    nodes["token_budget"] = nodes["prefill_chunk"] = 1 << 20
    nodes["kv_tokens"] = nodes["free_kv"] = 2 * likely_kv_tokens(1, 1 << 20) - 1
    assert likely_kv_tokens(MAX_TOKENS, 1 << 20) <= nodes["kv_tokens"][0]
    a_fleet(world).run()
    service_ms, per_ms = lengths * token_ms, num_requests / requests["arrival_ms"][-1]
    waiting_ms = per_ms * (service_ms**2).mean() / (2 * (1 - per_ms * service_ms.mean()))
    return float((requests["done_ms"] - requests["arrival_ms"]).mean()), float(service_ms.mean() + waiting_ms)


@pytest.mark.parametrize("utilisation", [0.3, 0.6])
def test_a_verifier_with_room_for_one_session_and_fixed_times_is_an_m_d_1_queue(utilisation: float) -> None:
    mean, expected = queueing_world(utilisation, 150_000, 1, exponential=False)
    assert mean == pytest.approx(expected, rel=0.01)


def test_with_exponential_times_it_is_an_m_g_1_queue() -> None:
    mean, expected = queueing_world(0.6, 250_000, 2, exponential=True)
    assert mean == pytest.approx(expected, rel=0.01)


def test_target_only_decoding_takes_one_pass_per_token() -> None:
    world = a_world(1, tokens=50, weights=(20, 0, 0, 0, 0, 0, 0))
    world.requests["device"] = -1
    a_fleet(world).run()
    assert tpot_ms(world)[0] == pytest.approx(20)
    assert world.requests["first_ms"][0] == pytest.approx(20)


@pytest.mark.parametrize(("step_ms", "rtt_ms", "expected"), [(10, 0, 10), (10, 60, 10), (30, 10, 20)])
def test_a_sliding_window_of_right_guesses_runs_at_the_speed_of_its_slower_part(
    step_ms: float, rtt_ms: float, expected: float
) -> None:
    """A verifier with a slower drafter decodes at its own speed, by free run."""
    world = a_world(1, tokens=4000, step_ms=step_ms, rtt_ms=rtt_ms)
    world.pairs["window"] = 32
    a_fleet(world, rate=1.0).run()
    assert tpot_ms(world)[0] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("window", [1, 4, 8])
@pytest.mark.parametrize("rtt_ms", [0.0, 30.0])
def test_stop_and_wait_takes_the_time_of_its_formula(rate: float, window: int, rtt_ms: float) -> None:
    """(1 - a^(w+1)) / (1 - a) tokens in RTT + pass + w draft steps (arXiv 2211.17192, theorem 3.8)."""
    num, tokens, step_ms, row_ms = 40, 3000, 7.0, 0.5
    world = a_world(
        num, num_slots=4, tokens=tokens, choice=stop_and_wait(window), rtt_ms=rtt_ms, step_ms=step_ms,
        weights=(20, 0, row_ms, 0, 0, 0, 0),
    )  # fmt: skip
    world.requests["client"] = 0
    a_fleet(world, rate=rate).run()
    per_round = (1 - rate ** (window + 1)) / (1 - rate)
    round_ms = rtt_ms + 20 + row_ms * (window + 1) + window * step_ms
    assert tpot_ms(world).mean() == pytest.approx(round_ms / per_round, rel=0.01)


def test_every_guess_has_one_fate_and_every_request_ends() -> None:
    world = a_world(300, num_devices=20, num_nodes=3, tokens=60, rtt_ms=25)
    rng = np.random.default_rng(5)
    requests = world.requests
    requests["device"] = rng.integers(-1, 20, len(requests))
    requests["arrival_ms"] = np.cumsum(rng.exponential(40, len(requests)))
    requests["tokens"] = rng.integers(1, 61, len(requests))
    world.devices["jitter_ms"], world.devices["stall_rate"], world.devices["stall_ms"] = 5, 0.02, 200
    a_fleet(world, rate=0.7).run()
    fates = sum(requests[name] for name in ("accepted", "rejected", "late", "discarded"))
    assert (fates == requests["drafted"]).all()
    assert (requests["done_ms"] > requests["first_ms"] - 1e-9).all()
    assert (requests["first_ms"] > requests["arrival_ms"]).all()
    assert requests["drafted"][requests["device"] >= 0].sum() > 5000
    assert requests["drafted"][requests["device"] < 0].sum() == 0
    assert world.nodes["num_committed"].sum() == requests["tokens"].sum()


def test_sliding_is_faster_than_stop_and_wait_far_away() -> None:
    times = {}
    for name, choice in (("sliding", SLIDING), ("stop-and-wait", stop_and_wait(8))):
        world = a_world(4, num_slots=4, tokens=500, choice=choice, rtt_ms=60)
        world.requests["client"] = 0
        a_fleet(world, rate=0.9).run()
        times[name] = tpot_ms(world).mean()
    assert times["sliding"] < 0.9 * times["stop-and-wait"]
