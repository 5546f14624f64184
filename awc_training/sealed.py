"""The sealed set: scenarios of a second generator, drawn anew for each candidate.

The seed is a digest of the candidate's commit, so nobody can have seen the scenarios before the candidate was final.
Every opening is appended to a committed record with date, commit and name of the candidate; a commit is opened once.
Loads are traces after published statistics (request_trace.py). Numbers, devices, links and objectives are drawn in
another way than in development.py; target-only can meet some objectives.

Invariant: a set is opened only for a commit without local changes of code, and recorded before it is run.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from awc_training.request_trace import CODING, CONVERSATION, write_trace
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Scenario

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "reports" / "awc" / "sealed.jsonl"
NUM_SEALED = 240
REQUESTS = (30, 240)
RECORDINGS = [str(FOLDER.parent / "recordings" / f"smollm2-135m-{kind}.jsonl") for kind in ("int8", "int4")]
TIERS = {"phone": (16.0, 45.0), "laptop": (7.0, 16.0), "desktop": (2.5, 7.0)}  # draft step, ms
VERIFIERS = {"gpu-fast": 18.0, "gpu": 36.0, "gpu-large": 75.0, "cpu": 48.0}  # pass with one token, ms


class Opening(Struct, frozen=True):
    """A line of the record."""

    date: str
    commit: str
    candidate: str
    num_scenarios: int


class NotSealed(Exception):
    """The set may not be opened; the message says why."""


def seed_of(commit: str) -> int:
    return int.from_bytes(hashlib.sha256(f"sealed {commit}".encode()).digest()[:6], "big")


def open_set(candidate: str, record: Path = RECORD, num: int = NUM_SEALED) -> Opening:
    """Records the opening for the current commit. Raises NotSealed with local changes outside of docs/reports."""
    if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/reports"):
        raise NotSealed("commit the local changes first: the set belongs to a commit")
    opening = Opening(f"{datetime.now(UTC):%Y-%m-%d}", _git("rev-parse", "--short=12", "HEAD"), candidate, num)
    if any(each.commit == opening.commit for each in openings(record)):
        return next(each for each in openings(record) if each.commit == opening.commit)
    with record.open("ab") as file:
        file.write(msgspec.json.encode(opening) + b"\n")
    return opening


def openings(record: Path = RECORD) -> list[Opening]:
    """All openings so far, oldest first."""
    if not record.exists():
        return []
    return [msgspec.json.decode(line, type=Opening) for line in record.read_bytes().splitlines()]


def describe(opening: Opening, found: Sequence[Opening]) -> str:
    """Which opening of the record this is. Intervals say nothing of a candidate that was chosen after some of them."""
    number = found.index(opening) + 1
    return (
        f"Opening {number} of {len(found)} in the [record](sealed.jsonl), of {opening.num_scenarios} scenarios. "
        "Intervals are not corrected for the number of openings."
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def sealed_scenarios(seed: int, num: int, folder: Path) -> Iterator[Scenario]:
    """`folder`: for the traces, and the base of file names in the scenarios."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        yield _draw(np.random.default_rng([seed, index]), f"sealed-{seed:x}-{index}", folder)


def _draw(rng: np.random.Generator, name: str, folder: Path) -> Scenario:
    kind = str(rng.choice(list(VERIFIERS)))
    num_verifiers = int(rng.integers(1, 9))
    num_at_once = num_verifiers * float(rng.choice([0.7, 2.0, 5.0, 12.0]))  # sessions
    service = CODING if rng.random() < 0.25 else CONVERSATION
    pass_ms = VERIFIERS[kind] * rng.uniform(0.8, 1.25)
    times = _times(rng, kind == "cpu", pass_ms)
    seconds = service.answer * np.exp(service.answer_spread**2 / 2) * pass_ms / 1000 + 0.3
    num = int(np.clip(num_at_once * 40 / seconds, *REQUESTS))
    write_trace(folder / f"{name}.jsonl", rng, service, num_at_once / seconds, rng.uniform(1.5, 3.0), num)
    content: dict[str, Any] = {
        "name": name,
        "seed": int(rng.integers(1 << 31)),
        "workload": {"kind": "trace", "file": f"{name}.jsonl"},
        "edge": _edges(rng, max(1, round(num_at_once / rng.uniform(0.5, 3.0)))),
        "cloud": [{"count": num_verifiers, "times": times, "noise": 0.08, "kv_tokens": 200_000}],
        "objective": {"ttft_ms": float(rng.choice([800, 3000])), "tpot_ms": pass_ms * float(rng.uniform(0.25, 2.0))},
    }
    if rng.random() < 0.3:
        content["change"] = _changes(rng, content["edge"][0]["name"])
    return Scenario.model_validate(content, strict=False)


def _times(rng: np.random.Generator, is_cpu: bool, pass_ms: float) -> dict[str, Any]:
    if is_cpu:
        return {"base_ms": 0.9 * pass_ms, "session_ms": 0.06 * pass_ms, "token_ms": 0.04 * pass_ms, "cached_ms": 0.5}
    above = (0.0, 0.0005 * pass_ms, 0.003 * pass_ms)
    per_token = {"session_ms": 0.01 * pass_ms, "token_ms": 0.001 * pass_ms, "above_ms": above}
    return {"base_ms": 0.985 * pass_ms, "cached_ms": 0.01 * pass_ms * rng.uniform(0.2, 2)} | per_token


def _edges(rng: np.random.Generator, num: int) -> list[dict[str, Any]]:
    """One to three tiers of devices, each with a link and a draft of its own."""
    tiers = rng.choice(list(TIERS), int(rng.integers(1, 4)), replace=False).tolist()
    return [_edge(rng, tier, max(1, num // len(tiers))) for tier in tiers]


def _edge(rng: np.random.Generator, tier: str, count: int) -> dict[str, Any]:
    step_ms = float(rng.uniform(*TIERS[tier]))
    rtt_ms = float(rng.gamma(1.6, 45.0)) + 4
    link = {"rtt_ms": min(rtt_ms, 300.0), "jitter_ms": float(rng.choice([1.0, 8.0, 35.0]))}
    if rng.random() < 0.2:
        link |= {"stall_rate": float(rng.uniform(0.005, 0.05)), "stall_ms": 250.0}
    times = {"step_ms": step_ms, "step_ms_per_1000": 0.06 * step_ms, "fed_ms": 0.08 * step_ms}
    times |= {"session_ms": 0.25 * step_ms} if tier == "desktop" else {}
    return {"name": tier, "count": count, "times": times, "link": link, "guesses": _guesses(rng)}


def _guesses(rng: np.random.Generator) -> dict[str, Any]:
    kind = int(rng.integers(3))
    if kind == 0:
        return {"kind": "recorded", "file": RECORDINGS[int(rng.integers(2))]}
    if kind == 1:
        first, last = rng.uniform(0.6, 0.97), rng.uniform(0.4, 0.95)
        return {"kind": "by-position", "rates": np.linspace(first, last, 8).tolist()}
    easy = float(rng.beta(12, 1.5))
    return {"kind": "markov", "easy": easy, "hard": easy * rng.uniform(0.3, 0.8), "to_hard": 0.06, "to_easy": 0.2}


def _changes(rng: np.random.Generator, edge: str) -> list[dict[str, Any]]:
    what = {"link": {"rtt_ms": float(rng.uniform(5, 250))}} if rng.random() < 0.5 else {"guesses": _guesses(rng)}
    return [{"at_s": float(rng.uniform(8, 20)), "edge": edge} | what]
