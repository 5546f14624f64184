"""Users of one verifier: the search, and the stretched times."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.experiments.users import STEP, Load, Users, most_users, table
from benchmarks.harness.files import ROOT
from benchmarks.harness.latency import LatencyObjective, RequestSample, summarise
from benchmarks.harness.origin import Origin
from benchmarks.standins.stretched import stretched

LIMIT = 256


@pytest.mark.parametrize("seed", range(5))
async def test_the_search_finds_the_last_step_that_holds_with_few_loads(seed: int) -> None:
    carries = random.Random(seed).randrange(STEP, LIMIT)
    tried = []

    async def holds(num_users: int) -> bool:
        tried.append(num_users)
        return num_users <= carries

    assert await most_users(holds, LIMIT) == carries // STEP * STEP
    assert len(tried) == len(set(tried)) <= 11


@pytest.mark.parametrize(("carries", "most"), [(0, 0), (10_000, LIMIT)])
async def test_none_or_all_may_hold(carries: int, most: int) -> None:
    async def holds(num_users: int) -> bool:
        return num_users <= carries

    assert await most_users(holds, LIMIT) == most


def test_all_times_of_the_models_are_stretched_alike() -> None:
    profiles = ROOT / "profiles"
    target, draft = profiles / "roofline-a100x2-llama-2-70b.json", profiles / "roofline-a40-llama-2-7b.json"
    once, four = (stretched("test", target, draft, slower) for slower in (1, 4))
    for load in ((1, 1, 100), (40, 200, 9000), (128, 300, 30_000)):
        assert four.pass_times.pass_ms(*load) == pytest.approx(4 * once.pass_times.pass_ms(*load))
    assert four.step_times.feed_ms(3, 200, 2) == pytest.approx(4 * once.step_times.feed_ms(3, 200, 2))
    assert "4 times" in four.origin


def test_a_failed_request_is_a_missed_objective_and_the_limit_is_told() -> None:
    answer = RequestSample(0, 0.0, 0.0, 0.1, 0.6, num_tokens=64)
    good, bad = (summarise(each, LatencyObjective()) for each in ([answer], [answer, replace(answer, status="503")]))
    assert Load(8, 40.0, good).is_within(50.0)
    assert not Load(8, 60.0, good).is_within(50.0)
    assert not Load(8, 40.0, bad).is_within(50.0)
    origin = Origin("a test", "a machine", "a date", "3")
    loads = {"cloud-only": [Load(8, 40.0, good)], "DSD": [Load(16, 40.0, good)]}
    shown = table(Users({"cloud-only": 8, "DSD": 16}, 16, loads, "stand-ins", 50.0, 4.0, [], origin))
    assert list(shown.columns[1].cells) == ["8", "16 or more"]
