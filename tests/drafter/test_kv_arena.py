"""The memory of many sessions: content stays with its session, whoever steps with whom."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from services.edge_drafter.graphs import kv_arena
from services.edge_drafter.graphs.graph import DraftCache, Prefix
from services.edge_drafter.graphs.kv_arena import KvArena
from tests.memory import peak_bytes

TENSORS, HEADS, HEAD_SIZE = 3, 2, 4


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_arena, "FIRST_CAPACITY", 8)


def an_arena(max_capacity: int = 200, kept_tokens: int = 0) -> KvArena:
    return KvArena(TENSORS, HEADS, HEAD_SIZE, np.float32, max_capacity, kept_tokens)


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

    def take(self, source: DraftCache, start: int, length: int, is_moved: bool) -> DraftCache:
        """A cache that begins like another one; the entries before `start` are its own."""
        target = DraftCache(200)
        if start:
            self.held[target] = self.held[source][:start]
            (row,) = self.arena.line_up([target], start)
            self.arena._numbers[:, row, :, :start] = np.array(self.held[target], np.float32)[None, None, :, None]
            target.length = start
        for _ in range(2):  # a failed step is repeated
            self.arena.copy(Prefix(source, start, length, is_moved), target)
        self.held[target], target.length = self.held[source][:length], length
        if is_moved:
            del self.held[source]
        return target

    def check(self) -> None:
        for cache, values in self.held.items():
            found = self.arena._numbers[:, self.arena._rows[cache], :, : cache.length, :]
            expected = np.array(values[: cache.length], np.float32)[None, None, :, None]
            np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("seed", range(5))
def test_each_session_keeps_its_content_while_others_come_go_grow_and_step_without_it(seed: int) -> None:
    rng = random.Random(seed)
    step = Step(an_arena(kept_tokens=rng.choice([0, 64, 500])))
    caches: list[DraftCache] = []
    for turn in range(400):
        if not caches or (len(caches) < 7 and rng.random() < 0.1):
            caches.append(DraftCache(200))
        if rng.random() < 0.03:
            step.held.pop(caches.pop(rng.randrange(len(caches))), None)
        if caches and len(caches) < 7 and rng.random() < 0.1:
            source, is_moved = rng.choice(caches), rng.random() < 0.5
            if source.length:
                length = rng.randint(1, source.length)
                caches.append(step.take(source, rng.choice([0, length // 2]), length, is_moved))
                if is_moved:
                    caches.remove(source)
                step.check()
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


def test_rows_line_up_where_the_fewest_entries_of_others_are() -> None:
    step = Step(an_arena())
    caches = [DraftCache(100) for _ in range(4)]
    step.run(caches, [0.0] * 4)
    for _ in range(5):
        (row,) = step.run([caches[1]], [1.0])
    del step.held[caches.pop()]
    step.run([caches[0], caches[2]], [2.0, 3.0])
    assert step.arena._rows[caches[1]] == row
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


def test_memory_that_far_fewer_tokens_need_is_given_back_while_a_session_goes_on() -> None:
    step = Step(an_arena())
    caches = [DraftCache(200) for _ in range(8)]
    step.run(caches, [1.0] * 8)
    step.arena.line_up(caches, 30)
    assert (step.arena._num_rows, step.arena.row_shape[1]) == (8, 32)
    for cache in caches[1:]:
        del step.held[cache]
    del caches[1:], cache
    step.run(caches, [2.0])
    assert step.arena._num_rows == 8, "it is not moved without a reason"
    step.run([DraftCache(200)], [3.0])
    assert (step.arena._num_rows, step.arena.row_shape[1]) == (2, 8)
    step.check()


def test_memory_is_given_back_to_a_chat_that_goes_on_in_its_row_too() -> None:
    step = Step(an_arena())
    caches = [DraftCache(200) for _ in range(8)]
    step.run(caches, [1.0] * 8)
    step.arena.line_up(caches, 30)
    for cache in caches[1:]:
        del step.held[cache]
    target = step.take(caches[0], 0, 1, is_moved=True)
    del caches[:], cache
    step.run([target], [2.0])
    assert (step.arena._num_rows, step.arena.row_shape[1]) == (1, 8)
    step.check()


def test_there_are_rows_for_kept_caches_as_long_as_all_hold_no_more_tokens_than_allowed() -> None:
    arena = an_arena(kept_tokens=64)
    for length, num_rows in ((1, 8), (9, 4), (20, 2), (40, 1), (150, 1)):
        assert arena.num_rows(1, length) == num_rows
        assert arena.num_rows(3, length) == max(num_rows, 4), "sessions get what they need"
        arena.line_up([DraftCache(200)], length)
        assert arena._num_rows == num_rows


def test_caches_within_the_rows_that_are_told_never_make_the_memory_larger() -> None:
    rng, arena, used, kept = random.Random(3), an_arena(kept_tokens=64), [], []
    for _ in range(300):
        used = rng.sample(used, rng.randint(0, len(used)))
        used += [DraftCache(200) for _ in range(rng.randint(not used, 2))]
        for cache in used:
            cache.length = min(cache.length, 60)
        length = max(cache.length for cache in used) + rng.randint(1, 9)
        num_rows = arena.num_rows(len(used), length)
        kept = kept[: max(0, num_rows - len(used))]
        num_sizes = arena.num_sizes
        arena.line_up(rng.sample(used, 1), length)
        largest = max(length, *(cache.length for cache in [*used, *kept]))
        capacity = next(each for each in (8, 16, 32, 64, 128) if each >= largest)
        if arena.num_sizes > num_sizes:
            assert arena._num_rows * arena.row_shape[1] <= max(64, 2 * len(used) * capacity)
        for cache in used:
            cache.length = rng.randint(0, length) if cache in arena._rows else 0
        if rng.random() < 0.5:
            kept.append(used.pop())


def test_a_moved_prefix_is_not_copied() -> None:
    step = Step(an_arena())
    (cache,) = caches = [DraftCache(200)]
    for number in range(20):
        (row,) = step.run(caches, [float(number)])
    target = step.take(cache, 0, 15, is_moved=True)
    assert step.arena.line_up([target], 16) == [row]
    assert step.arena._num_rows == 1
    step.check()


def test_lining_up_copies_what_is_held_and_not_the_whole_rows() -> None:
    arena = KvArena(TENSORS, HEADS, HEAD_SIZE, np.float32, 1 << 20)
    caches = [DraftCache(1 << 20) for _ in range(3)]
    arena.line_up(caches, 1 << 20)
    for cache in caches:
        cache.length = 10
    assert peak_bytes(lambda: arena.line_up([caches[0], caches[2]], 11)) < 1 << 20
