"""Moves of sessions are read from the timelines of a gateway's inspector."""

from __future__ import annotations

from typing import Any

from benchmarks.chaos.moves import ids_of_request, moves
from benchmarks.chaos.records import Move


def step(at_ms: float, kind: str, instance: str, term: int) -> dict[str, Any]:
    return {"at_ms": at_ms, "kind": kind, "instance": instance, "term": term, "detail": ""}


def verdict(at_ms: float, term: int, num_tokens: int = 1) -> dict[str, Any]:
    return {"at_ms": at_ms, "term": term, "num_tokens": num_tokens}


def of(steps: list[dict[str, Any]], *verdicts: dict[str, Any]) -> list[Move]:
    return list(moves({"steps": steps, "verdicts": list(verdicts), "total_ms": 9000.0}, "gateway-0", 100.0))


OPEN = [step(0, "open", "verifier-0", 1), step(50, "opened", "verifier-0", 1)]


def test_a_move_is_from_the_last_message_of_a_verifier_to_opened_of_the_next_to_its_first_token() -> None:
    steps = [*OPEN, step(900, "open", "verifier-1", 2), step(1500, "opened", "verifier-1", 2)]
    words = [verdict(200, 1), verdict(400, 1), verdict(1600, 2, num_tokens=0), verdict(2000, 2)]
    assert of(steps, *words) == [Move("gateway-0", 100.4, 101.5, 102.0)]
    assert of(steps) == [Move("gateway-0", 100.05, 101.5, 109.0)], "no token: it lasts to the end"


def test_a_change_of_drafter_is_no_move_unless_the_verifier_lost_the_session() -> None:
    same = [step(900, "open", "verifier-0", 2), step(950, "opened", "verifier-0", 2)]
    assert of([*OPEN, *same], verdict(400, 1), verdict(1000, 2)) == []
    lost = step(600, "absent", "verifier-0", 1)
    assert of([*OPEN, lost, *same], verdict(400, 1), verdict(1000, 2)) == [Move("gateway-0", 100.4, 100.95, 101.0)]


def test_a_session_that_waits_for_kv_cache_does_not_move_by_a_fault() -> None:
    steps = [OPEN[0], step(50, "waiting", "verifier-0", 1)]
    assert of([*steps, step(900, "open", "verifier-1", 2), step(1500, "opened", "verifier-1", 2)]) == []


def test_a_wait_for_kv_cache_at_the_next_verifier_is_part_of_the_move() -> None:
    steps = [*OPEN, step(900, "open", "verifier-1", 2), step(950, "waiting", "verifier-1", 2)]
    opened = step(2500, "opened", "verifier-1", 2)
    words = [verdict(400, 1), verdict(3000, 2)]
    assert of([*steps, opened], *words) == [Move("gateway-0", 100.4, 102.5, 103.0)]
    assert of(steps, verdict(400, 1)) == [Move("gateway-0", 100.4, 109.0, 109.0)], "it never opened"


def test_the_prefill_of_a_session_that_moves_on_ends_where_the_next_verifier_opens_it() -> None:
    steps = [*OPEN, step(900, "open", "verifier-1", 2), step(1500, "opened", "verifier-1", 2)]
    again = [step(2000, "open", "verifier-0", 3), step(3500, "opened", "verifier-0", 3)]
    found = of([*steps, *again], verdict(400, 1), verdict(4000, 3))
    assert found == [Move("gateway-0", 100.4, 101.5, 103.5), Move("gateway-0", 101.5, 103.5, 104.0)]


def test_the_choices_of_a_request_were_asked_for_at_one_time() -> None:
    summaries = [{"id": name, "asked_at": at} for name, at in (("a", 7.123), ("b", 7.128), ("c", 7.124))]
    assert ids_of_request(summaries, "c") == ["a", "c"]
    assert ids_of_request(summaries, "z") == []
