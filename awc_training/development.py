"""Development scenarios: small random fleets on which formulas and rivals are tuned, equal for equal seeds.

They vary what decides how far ahead a draft should run: round trips of 2 to 300 ms with jitter and stalls, 1 to 8
verifiers of the GPU or CPU kind, several sessions on a drafter, guesses of four kinds, changes during the run, and
objectives that target-only can meet among them.

Invariant: a development scenario decides nothing. What decides is in sealed.py and in scenarios/window-control.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from awc_training.scenarios import guesses_of, pass_times
from dsd_sim.scenario.scenario import Scenario

SEED = 77013
SECONDS = 40.0  # of a scenario, approximately
MOST_TOKENS = 25_000  # of all answers
CHANGE_S = 12.0


def development(num: int, seed: int = SEED) -> list[Scenario]:
    """The first `num` development scenarios."""
    return [_draw(seed, index) for index in range(num)]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def link_of(rng: np.random.Generator, rtt_ms: float) -> dict[str, Any]:
    """A link with the jitter of a fixed line or of radio; every fourth stalls."""
    link = {"rtt_ms": rtt_ms, "jitter_ms": float(rng.choice([0.02 * rtt_ms, 0.2 * rtt_ms, rng.uniform(5, 40)]))}
    if rng.random() < 0.25:
        link |= {"stall_rate": log_uniform(rng, 0.003, 0.06), "stall_ms": float(rng.uniform(80, 320))}
    return link


def _draw(seed: int, index: int) -> Scenario:
    rng = np.random.default_rng([seed, index])
    num_verifiers = int(rng.choice([1, 1, 2, 4, 8]))
    pass_ms, answer = log_uniform(rng, 15, 100), int(rng.integers(50, 250))
    num_sessions = max(1, round(num_verifiers * log_uniform(rng, 0.5, 24)))
    sharing = float(rng.choice([0.6, 1.0, 1.0, 2.5, 5.0]))  # sessions of a drafter
    rtt_ms = log_uniform(rng, 2, 300)
    times = pass_times(rng, pass_ms)
    edges = [_edge(rng, number, rtt_ms) for number in range(int(rng.choice([1, 2])))]
    counts = np.diff(np.linspace(0, max(len(edges), round(num_sessions / sharing)), len(edges) + 1).round().astype(int))
    tpot_ms = pass_ms * float(rng.choice([0.3, 0.5, 0.8, 1.6]))
    content = {
        "name": f"development-{index}",
        "seed": int(rng.integers(1 << 31)),
        "workload": _workload(rng, num_sessions, answer, times),
        "edge": [edge | {"count": int(count)} for edge, count in zip(edges, counts, strict=True)],
        "cloud": [{"count": num_verifiers, "times": times, "noise": 0.05}],
        "objective": {"ttft_ms": float(rng.choice([500, 1000, 2000])), "tpot_ms": tpot_ms},
        "change": _changes(rng, edges),
    }
    return Scenario.model_validate(content, strict=False)


def _edge(rng: np.random.Generator, number: int, rtt_ms: float) -> dict[str, Any]:
    step_ms = log_uniform(rng, 2, 25)
    times = {"step_ms": step_ms, "step_ms_per_1000": step_ms * rng.uniform(0.02, 0.15), "fed_ms": step_ms * 0.1}
    if rng.random() < 0.4:  # sessions share steps
        times |= {"session_ms": step_ms * rng.uniform(0.1, 0.5)}
    return {"name": f"edge-{number}", "times": times, "link": link_of(rng, rtt_ms), "guesses": guesses_of(rng)}


def _workload(rng: np.random.Generator, num_sessions: int, answer: int, times: dict[str, Any]) -> dict[str, Any]:
    """Closed loops, Poisson arrivals or bursts with about `num_sessions` at once."""
    batch = min(num_sessions, 24)
    token_ms = times["base_ms"] + batch * (times["session_ms"] + times["token_ms"])
    rate = num_sessions / (answer * token_ms / 1000)  # answers a second if a pass gives each session a token
    num_requests = max(2 * num_sessions, min(round(rate * SECONDS), MOST_TOKENS // answer))
    lengths = {
        "prompt": {"low": 16, "high": int(rng.integers(40, 600))},
        "answer": {"low": answer // 2, "high": answer + answer // 2},
        "max_tokens": 512,
    }
    kind = rng.random()
    asked: dict[str, Any] = {"kind": "poisson", "rate_per_s": rate}
    if kind < 0.5:
        asked = {"kind": "closed", "num_clients": num_sessions, "think_s": float(rng.choice([0.0, 0.0, 1.0]))}
    elif kind < 0.75:
        asked = {"kind": "bursts", "calm_per_s": rate / 2, "busy_per_s": 2 * rate, "calm_s": 4.0, "busy_s": 2.0}
    return asked | {"num_requests": num_requests, "lengths": lengths}


def _changes(rng: np.random.Generator, edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every third scenario changes: round trip, guesses, or speed of the drafters, there and back."""
    kind = int(rng.integers(9))
    if kind > 2:
        return []
    edge = edges[0]
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"link": {"rtt_ms": log_uniform(rng, 2, 300)}}, {"link": {"rtt_ms": edge["link"]["rtt_ms"]}}),
        ({"guesses": guesses_of(rng)}, {"guesses": edge["guesses"]}),
        ({"draft_slowdown": log_uniform(rng, 1.5, 4)}, {"draft_slowdown": 1.0}),
    ]
    there, back = kinds[kind]
    return [
        {"at_s": CHANGE_S, "edge": "edge-0"} | there,
        {"at_s": 2 * CHANGE_S, "edge": "edge-0"} | back,
    ]
