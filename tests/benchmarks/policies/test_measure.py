"""Rounds of a cell: who answers what, in which order, and what a race leaves out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from awc.policy import WindowChoice
from benchmarks.harness.requests import connected
from benchmarks.harness.scripted_controller import ScriptedController
from benchmarks.policies import measure
from benchmarks.policies.measure import MIN_ROUNDS, CellRunner, RunSettings
from benchmarks.policies.plan import ADAPTIVE, FEW_MODES, SLIDING_FREE, TARGET_ONLY, CellSpec
from benchmarks.policies.rounds import BenchRound
from tests.benchmarks.fake_gateway import serving

MAX_TOKENS = 11


class FakeController:
    """Records the choices."""

    def __init__(self) -> None:
        self.chosen: list[WindowChoice | str] = []
        self.draft_ms = 0.0

    async def choose(self, control: WindowChoice | str) -> None:
        self.chosen.append(control)
        self.draft_ms += 1


async def test_a_round_is_every_mode_on_the_same_prompts_in_random_order() -> None:
    controller, prompts = FakeController(), [f"prompt {number}" for number in range(10)]
    settings = RunSettings(Path("m"), prompts, MAX_TOKENS, seconds=0.0, seed=1)
    spec = CellSpec("int8", 0, 2, FEW_MODES)
    notices: list[str] = []
    async with serving() as fake, connected(fake.url) as gateway:
        gateways = dict.fromkeys((mode.name for mode in FEW_MODES), gateway)
        runner = CellRunner(spec, settings, gateways, cast(ScriptedController, controller), "fake")
        rounds, _ = await runner.rounds(notices.append)
    assert len(rounds) == len(notices) == MIN_ROUNDS
    per_round = len(FEW_MODES) * spec.num_sessions
    for number, each in enumerate(rounds):
        bodies = fake.bodies[number * per_round : (number + 1) * per_round]
        assert {body["messages"][0]["content"] for body in bodies} == set(prompts[2 * number + 2 : 2 * number + 4])
        assert sum(body["dsd"]["speculation"] == "off" for body in bodies) == spec.num_sessions
        assert set(each.samples) == {mode.name for mode in FEW_MODES}
        assert sorted(each.draft_ms.values()) == [number * len(FEW_MODES) + 1 + turn for turn in range(len(FEW_MODES))]
        asked = {mode: {prompts[sample.prompt_number] for sample in samples} for mode, samples in each.samples.items()}
        assert len(set(map(frozenset, asked.values()))) == 1
    orders = [
        tuple(controller.chosen[i : i + len(FEW_MODES)]) for i in range(0, len(controller.chosen), len(FEW_MODES))
    ]
    assert len(set(orders)) > 1
    by_text: Callable[[WindowChoice | str], str] = repr
    assert {tuple(sorted(order, key=by_text)) for order in orders} == {
        tuple(sorted((mode.control for mode in FEW_MODES), key=by_text))
    }


async def test_a_race_ends_with_rounds_of_adaptive_and_its_best_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_one(rounds: list[BenchRound], modes: list[str]) -> list[str]:
        return [mode for mode in modes if mode != SLIDING_FREE.name]

    monkeypatch.setattr(measure, "contenders", without_one)
    monkeypatch.setattr(measure, "best_rival", lambda rounds, modes: TARGET_ONLY.name)
    settings = RunSettings(Path("m"), ["prompt"], MAX_TOKENS, seconds=0.0, seed=1)
    found = {}
    async with serving() as fake, connected(fake.url) as gateway:
        for is_race in (True, False):
            spec = CellSpec("int8", 0, 2, FEW_MODES, is_race=is_race)
            gateways = dict.fromkeys((mode.name for mode in FEW_MODES), gateway)
            runner = CellRunner(spec, settings, gateways, cast(ScriptedController, FakeController()), "fake")
            rounds, num_race = await runner.rounds(lambda _: None)
            found[is_race] = [set(each.samples) for each in rounds], num_race
    everyone, finalists = {mode.name for mode in FEW_MODES}, {TARGET_ONLY.name, ADAPTIVE.name}
    race = [everyone, *[everyone - {SLIDING_FREE.name}] * (MIN_ROUNDS - 1)]
    assert found[True] == ([*race, *[finalists] * MIN_ROUNDS], MIN_ROUNDS)
    assert found[False] == ([everyone] * MIN_ROUNDS, None)


async def test_a_race_in_which_an_answer_failed_has_no_final_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "is_whole", lambda rounds: False)
    settings = RunSettings(Path("m"), ["prompt"], MAX_TOKENS, seconds=0.0, seed=1)
    async with serving() as fake, connected(fake.url) as gateway:
        gateways = dict.fromkeys((mode.name for mode in FEW_MODES), gateway)
        spec = CellSpec("int8", 0, 2, FEW_MODES, is_race=True)
        runner = CellRunner(spec, settings, gateways, cast(ScriptedController, FakeController()), "fake")
        rounds, num_race = await runner.rounds(lambda _: None)
    assert (len(rounds), num_race) == (MIN_ROUNDS, None)
