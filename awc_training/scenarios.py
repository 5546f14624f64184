"""The training scenarios of wc-dnn, small random fleets, and scenarios that change.

Invariant: equal seeds give equal scenarios.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsd_sim.scenario.scenario import Scenario

FOLDER = Path(__file__).parents[1] / "scenarios"  # base of the file names in scenarios
TOKENS = 12_000  # of all answers of a scenario, approximately
BATCH = 16  # sessions of a pass at the nominal capacity of a verifier
RECORDINGS = ("../recordings/smollm2-135m-int8.jsonl", "../recordings/smollm2-135m-int4.jsonl")


@dataclass(frozen=True, slots=True)
class Family:
    """The values to draw from."""

    name: str
    seed: int
    rtt_ms: tuple[float, ...]
    step_ms: tuple[float, ...]
    pass_ms: tuple[float, ...]  # with one session and one token
    loads: tuple[float, ...]  # share of the verifiers' target-only capacity
    mixed: float  # share of the scenarios with two classes of devices


TRAINING = Family(
    name="training",
    seed=20511,
    rtt_ms=(2, 5, 10, 20, 40, 60, 100),
    step_ms=(2, 4, 6, 9, 14, 20),
    pass_ms=(20, 30, 45, 60, 80),
    loads=(0.15, 0.4, 0.7, 1.1),
    mixed=0.0,
)


def drawn(family: Family, num: int) -> list[Scenario]:
    """The first `num` scenarios of a family."""
    return [_draw(family, index) for index in range(num)]


def _draw(family: Family, index: int) -> Scenario:
    rng = np.random.default_rng([family.seed, index])
    rtt_ms, pass_ms = _one_of(rng, family.rtt_ms), _one_of(rng, family.pass_ms)
    num_verifiers = int(rng.choice([1, 1, 1, 2]))
    times = pass_times(rng, pass_ms)
    load, is_closed = _one_of(rng, family.loads), rng.random() < 0.5
    num_sessions = num_verifiers * (int(np.exp(rng.uniform(0, np.log(24)))) if is_closed else load * BATCH)
    num_drafters = max(1, round(num_sessions * rng.uniform(0.7, 2.0)))  # mostly 0 or 1 sessions each
    answer = int(rng.integers(40, 161))
    workload = _workload(rng, is_closed, load, round(num_sessions), num_verifiers, times, answer)
    edges = _edges(rng, family, rtt_ms, num_drafters)
    content = {
        "name": f"{family.name}-{index}",
        "seed": int(rng.integers(1 << 31)),
        "workload": workload,
        "edge": edges,
        "cloud": [{"count": num_verifiers, "times": times, "noise": 0.05}],
        "objective": {"ttft_ms": _one_of(rng, (500, 1000, 2000)), "tpot_ms": pass_ms * _one_of(rng, (0.3, 0.5, 0.8))},
    }
    return Scenario.model_validate(content, strict=False)


def _one_of(rng: np.random.Generator, values: tuple[float, ...]) -> float:
    return float(values[int(rng.integers(len(values)))])


def pass_times(rng: np.random.Generator, pass_ms: float) -> dict[str, Any]:
    """Of a GPU, where tokens are cheap until the pass is compute-bound, or of a CPU."""
    is_gpu = rng.random() < 0.6
    token, session = (rng.uniform(0.001, 0.006), 0.008) if is_gpu else (rng.uniform(0.02, 0.06), rng.uniform(0.03, 0.1))
    above = (0.0, 0.0, 0.004) if is_gpu else (0.0, 0.0, 0.0)
    return {
        "base_ms": pass_ms * (1 - token - session),
        "session_ms": pass_ms * session,
        "token_ms": pass_ms * token,
        "above_ms": tuple(pass_ms * share for share in above),
        "cached_ms": pass_ms * rng.uniform(0.005, 0.05),
    }


def _workload(
    rng: np.random.Generator,
    is_closed: bool,
    load: float,
    num_clients: int,
    num_verifiers: int,
    times: dict[str, Any],
    answer: int,
) -> dict[str, Any]:
    num_requests = max(TOKENS // answer, 40)
    lengths = {
        "prompt": {"low": 16, "high": int(rng.integers(40, 400))},
        "answer": {"low": answer // 2, "high": answer + answer // 2},
        "max_tokens": 512,
    }
    if is_closed:
        think_s = float(rng.choice([0.0, 0.0, 1.0]))
        asked = {"kind": "closed", "num_clients": num_clients, "think_s": think_s}
    else:
        tokens_per_s = 1000 * BATCH / (times["base_ms"] + BATCH * (times["session_ms"] + times["token_ms"]))
        rate = load * num_verifiers * tokens_per_s / answer
        asked = {"kind": "poisson", "rate_per_s": rate}
        if rng.random() < 0.3:
            asked = {"kind": "bursts", "calm_per_s": rate / 2, "busy_per_s": 2 * rate, "calm_s": 4.0, "busy_s": 2.0}
    return asked | {"num_requests": num_requests, "lengths": lengths}


def _edges(rng: np.random.Generator, family: Family, rtt_ms: float, num_drafters: int) -> list[dict[str, Any]]:
    """One or two classes of devices."""
    counts = [num_drafters]
    if num_drafters > 1 and rng.random() < family.mixed:
        counts = [num_drafters - num_drafters // 2, num_drafters // 2]
    edges = []
    for number, count in enumerate(counts):
        guesses = guesses_of(rng)
        step_ms = _one_of(rng, family.step_ms) * rng.uniform(0.9, 1.1)
        per_1000, fed = rng.uniform(0.02, 0.15), rng.uniform(0.02, 0.3)
        times = {"step_ms": step_ms, "step_ms_per_1000": step_ms * per_1000, "fed_ms": step_ms * fed}
        link = {"rtt_ms": rtt_ms, "jitter_ms": rtt_ms * rng.uniform(0, 0.1)}
        edges.append({"name": f"edge-{number}", "count": count, "times": times, "link": link, "guesses": guesses})
    return edges


def guesses_of(rng: np.random.Generator) -> dict[str, Any]:
    """A model of guesses."""
    kind = rng.random()
    if kind < 0.2:
        is_int4 = rng.random() < 0.5
        return {"kind": "recorded", "file": RECORDINGS[int(is_int4)]}
    if kind < 0.6:
        rate = float(rng.uniform(0.4, 0.95))
        return {"kind": "independent", "rate": rate}
    easy, hard = float(rng.uniform(0.8, 0.98)), float(rng.uniform(0.2, 0.7))
    to_hard, to_easy = float(rng.uniform(0.02, 0.2)), float(rng.uniform(0.1, 0.4))
    return {"kind": "markov", "easy": easy, "hard": hard, "to_hard": to_hard, "to_easy": to_easy}


def _closed(num_clients: int, requests_each: int, answer: dict[str, int]) -> dict[str, Any]:
    """A closed loop without think time."""
    return {
        "kind": "closed",
        "num_clients": num_clients,
        "think_s": 0.0,
        "num_requests": requests_each * num_clients,
        "lengths": {"prompt": {"low": 20, "high": 120}, "answer": answer, "max_tokens": 256},
    }


# --- scenarios that change --------------------------------------------------------------------------------------------

CHANGE_S = 20.0


@dataclass(frozen=True, slots=True)
class Changing:
    """A scenario that changes at CHANGE_S. `phases`: the states before and after as scenarios without a change."""

    scenario: Scenario
    phases: tuple[Scenario, Scenario]


def changing(seed: int) -> list[Changing]:
    """RTT 10 to 80 ms, three times the clients, or acceptance 0.9 to 0.5, each with 2 and with 16 drafters. Closed loop
    without think time, so nothing else changes. `seed`: of jitter, lengths and guesses."""
    far = {"link": {"rtt_ms": 80.0, "jitter_ms": 1.0}}
    wrong = {"guesses": {"kind": "independent", "rate": 0.5}}
    found = []
    for num_drafters in (2, 16):
        found += [
            _changing("rtt", num_drafters, seed, change=far, edge=far),
            _changing("load", num_drafters, seed, change={"load": 3.0}, edge={}),
            _changing("acceptance", num_drafters, seed, change=wrong, edge=wrong),
        ]
    return found


def _changing(what: str, num_drafters: int, seed: int, change: dict[str, Any], edge: dict[str, Any]) -> Changing:
    """`edge`: fields of the devices that differ after the change."""
    num_clients = round(num_drafters * change.get("load", 1.0))
    before = _steady(f"{what}-{num_drafters}", seed, num_drafters, num_drafters)
    after = _steady(f"{what}-{num_drafters}-after", seed, num_drafters, num_clients)
    after["edge"] = [after["edge"][0] | edge]
    changed = before | {"change": [{"at_s": CHANGE_S} | change]}
    scenario, *phases = (Scenario.model_validate(each, strict=False) for each in (changed, before, after))
    return Changing(scenario, (phases[0], phases[1]))


def _steady(name: str, seed: int, num_drafters: int, num_clients: int) -> dict[str, Any]:
    edge = {
        "count": num_drafters,
        "times": {"step_ms": 10.0, "step_ms_per_1000": 1.0, "fed_ms": 1.0},
        "link": {"rtt_ms": 10.0, "jitter_ms": 1.0},
        "guesses": {"kind": "independent", "rate": 0.9},
    }
    times = {"base_ms": 32.0, "session_ms": 0.3, "token_ms": 0.2, "above_ms": (0.0, 0.0, 0.2), "cached_ms": 0.5}
    workload = _closed(num_clients, requests_each=25, answer={"low": 60, "high": 140})
    return {"name": name, "seed": seed, "workload": workload, "edge": [edge], "cloud": [{"count": 1, "times": times}]}
