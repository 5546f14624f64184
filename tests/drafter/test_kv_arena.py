"""The memory of many sessions: content stays with its session, whoever steps with whom."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from services.edge_drafter.graphs import kv_arena
from services.edge_drafter.graphs.graph import DraftCache
from services.edge_drafter.graphs.kv_arena import KvArena
from tests.memory import peak_bytes

TENSORS, HEADS, HEAD_SIZE = 3, 2, 4


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_arena, "FIRST_CAPACITY", 8)


def an_arena(max_capacity: int = 200) -> KvArena:
    return KvArena(TENSORS, HEADS, HEAD_SIZE, np.float32, max_capacity)


class Step:
    """What a graph does with an arena: it writes to the end of adjacent rows."""

    def __init__(self, arena: KvArena) -> None:
        self.arena = arena
        self.held: dict[DraftCache, list[float]] = {}  # what each cache must hold

    def run(self, caches: list[DraftCache], values: list[float]) -> list[int]:
        rows = self.arena.line_up(caches, max(cache.length for cache in caches) + 1)
        for cache, row, value in zip(caches, rows, values, strict=True):
            self.arena._numbers[:, row, :, cache.length] = value
            self.held[cache] = [*self.held.get(cache, [])[: cache.length], value]
            cache.length += 1
        return rows

    def check(self) -> None:
        for cache, values in self.held.items():
            found = self.arena._numbers[:, self.arena._rows[cache], :, : cache.length, :]
            expected = np.array(values[: cache.length], np.float32)[None, None, :, None]
            np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("seed", range(5))
def test_each_session_keeps_its_content_while_others_come_go_grow_and_step_without_it(seed: int) -> None:
    rng = random.Random(seed)
    step = Step(an_arena())
    caches: list[DraftCache] = []
    for turn in range(400):
        if not caches or (len(caches) < 7 and rng.random() < 0.1):
            caches.append(DraftCache(200))
        if rng.random() < 0.03:
            step.held.pop(caches.pop(rng.randrange(len(caches))), None)
        for cache in caches:
            if rng.random() < 0.1:
                cache.length = rng.randint(0, cache.length)  # a rollback
        chosen = rng.sample(caches, rng.randint(1, len(caches))) if caches else []
        if chosen:
            rows = step.run(chosen, [float(1000 * turn + number) for number in range(len(chosen))])
            assert sorted(rows) == list(range(min(rows), min(rows) + len(rows)))
            step.check()


def test_sessions_that_go_on_stepping_together_are_not_moved() -> None:
    step = Step(an_arena())
    caches = [DraftCache(100) for _ in range(6)]
    first = step.run(caches, [0.0] * 6)
    pair = [caches[1], caches[4]]
    moved = step.run(pair, [1.0, 2.0])
    assert step.run(pair, [3.0, 4.0]) == moved
    assert step.run([caches[3]], [5.0]) == [step.arena._rows[caches[3]]]
    assert sorted(step.run(caches, [6.0] * 6)) == sorted(first)
    step.check()


def test_the_row_of_a_session_that_is_gone_is_used_again() -> None:
    step = Step(an_arena())
    for _ in range(50):
        caches = [DraftCache(100) for _ in range(3)]
        step.run(caches, [1.0, 2.0, 3.0])
        step.held.clear()
    assert step.arena._num_rows == 4


def test_memory_grows_with_the_texts_and_is_given_back_when_no_session_is_left() -> None:
    arena = an_arena()
    assert arena.row_shape == (HEADS, 8, HEAD_SIZE)
    caches = [DraftCache(200) for _ in range(3)]
    arena.line_up(caches, 20)
    assert (arena._num_rows, arena.row_shape[1]) == (4, 32)
    arena.line_up(caches[:1], 150)
    assert (arena._num_rows, arena.row_shape[1]) == (4, 200)
    caches.clear()
    gc.collect()
    arena.line_up([DraftCache(200)], 5)
    assert (arena._num_rows, arena.row_shape[1]) == (1, 8)


def test_lining_up_copies_what_is_held_and_not_the_whole_rows() -> None:
    arena = KvArena(TENSORS, HEADS, HEAD_SIZE, np.float32, 1 << 20)
    caches = [DraftCache(1 << 20) for _ in range(3)]
    arena.line_up(caches, 1 << 20)
    for cache in caches:
        cache.length = 10
    assert peak_bytes(lambda: arena.line_up([caches[0], caches[2]], 11)) < 1 << 20
