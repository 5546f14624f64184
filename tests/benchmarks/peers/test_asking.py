"""Rounds: void answers are asked for again. What stays void voids the round, and a system that fails leaves it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.peers import asking
from benchmarks.peers.asking import MAX_ATTEMPTS, Failed, ask_all
from benchmarks.peers.cells import Cell
from benchmarks.peers.results import Answers
from benchmarks.peers.serving import Way
from tests.benchmarks.peers.sample_cells import answers

CELL = Cell(1, 50, 3)
GOOD = answers(CELL, 50.0, 100.0, random.Random(1))
BUSY = replace(GOOD, foreign_share=0.5)


class Script:
    """Plays answers of each system in turn, the last one again and again."""

    def __init__(self, **plays: list[Answers | Failed]) -> None:
        self.plays = plays
        self.asked: list[str] = []

    async def ask(self, way: str, prompts: Sequence[str], warm_up: Sequence[str], cell: Cell) -> Answers:
        self.asked.append(way)
        played = self.plays[way].pop(0) if len(self.plays[way]) > 1 else self.plays[way][0]
        if isinstance(played, Failed):
            raise played
        return played


async def play(
    script: Script, monkeypatch: pytest.MonkeyPatch, *, may_be_busy: bool = False
) -> tuple[dict[str, Answers] | None, list[str]]:
    monkeypatch.setattr(asking, "ask", script.ask)
    voids: list[str] = []
    ways: dict[str, Way] = {name: name for name in script.plays}  # type: ignore[misc]
    rng = random.Random(1)
    found = await ask_all(ways, ["a"], ["b"], CELL, rng, voids.append, lambda: None, may_be_busy=may_be_busy)
    return found, voids


async def test_all_systems_are_asked_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(**{name: [GOOD] for name in "abcdef"})
    found, voids = await play(script, monkeypatch)
    assert found == dict.fromkeys("abcdef", GOOD)
    assert voids == []
    assert sorted(script.asked) == list("abcdef") != script.asked


async def test_a_system_is_asked_again_after_a_disturbance_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(a=[BUSY, Failed("a: a request failed"), GOOD], b=[GOOD])
    found, voids = await play(script, monkeypatch)
    assert found == {"a": GOOD, "b": GOOD}
    assert voids == ["a: something else used 50.0% of a core", "a: a request failed"]


async def test_a_system_that_fails_again_and_again_leaves_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(a=[Failed("a: gone")], b=[GOOD])
    found, voids = await play(script, monkeypatch)
    assert (found, voids) == ({"b": GOOD}, ["a: gone"] * MAX_ATTEMPTS)


async def test_a_round_in_which_something_else_computes_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(a=[BUSY], b=[GOOD])
    found, voids = await play(script, monkeypatch)
    assert found is None
    assert len(voids) == script.asked.count("a") == MAX_ATTEMPTS


async def test_a_trial_counts_although_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    found, voids = await play(Script(a=[BUSY]), monkeypatch, may_be_busy=True)
    assert (found, voids) == ({"a": BUSY}, [])


GONE = Failed("a: gone")


@pytest.mark.parametrize("plays", [[BUSY, BUSY, GONE], [GONE, GONE, BUSY]], ids=["the last", "the first"])
async def test_a_system_stays_if_only_some_attempts_failed(
    plays: list[Answers | Failed], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = await play(Script(a=plays, b=[GOOD]), monkeypatch)
    assert found is None, "the round is asked again"


async def test_a_round_without_any_answer_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = await play(Script(a=[Failed("a: gone")]), monkeypatch)
    assert found is None
