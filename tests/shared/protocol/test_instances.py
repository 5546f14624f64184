"""Of a name the newest instances count, and a flood of nonces changes little."""

from __future__ import annotations

from shared.protocol import instances
from shared.protocol.instances import PAUSE_S, NewestInstances


def taken(newest: NewestInstances, instance_id: str, now: float) -> bool:
    if not newest.may_join(instance_id, now):
        return False
    newest.join(instance_id, now)
    return True


def test_a_newer_instance_replaces_the_oldest_of_its_name_for_good() -> None:
    newest = NewestInstances(per_name=2)
    assert [newest.join(each, 0.0) for each in ("a.1", "a.2", "b.1")] == [None, None, None]
    assert newest.join("a.3", PAUSE_S) == "a.1"
    assert not newest.may_join("a.1", 100.0)
    assert newest.may_join("a.2", PAUSE_S)


def test_a_name_replaces_an_instance_once_in_a_while_however_many_nonces_it_draws() -> None:
    newest = NewestInstances(per_name=1)
    joined = [taken(newest, f"liar.{number}", number / 100) for number in range(500)]
    assert sum(joined) == 5
    assert taken(newest, "honest.1", 5.0), "other names are not concerned"


def test_an_instance_that_left_may_come_back() -> None:
    newest = NewestInstances(per_name=1)
    newest.join("a.1", 0.0)
    newest.leave("a.1")
    assert newest.join("a.2", 0.1) is None
    newest.leave("a.2")
    assert newest.may_join("a.1", 0.2)


def test_the_replaced_that_are_remembered_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(instances, "MAX_REPLACED", 3)
    newest = NewestInstances(per_name=1)
    for number in range(6):
        newest.join(f"a.{number}", number * PAUSE_S)
    assert [newest.may_join(f"a.{number}", 100.0) for number in range(6)] == [True, True, False, False, False, True]


def test_the_nonces_of_one_name_bring_back_no_replaced_instance_of_another() -> None:
    newest = NewestInstances(per_name=1)
    newest.join("cloud.1", 0.0)
    newest.join("cloud.2", 1.0)
    for number in range(10_000):
        newest.join(f"liar.{number}", number * PAUSE_S)
    assert not newest.may_join("cloud.1", 20_000.0)
