"""Routing policies choose by load, repeatably, and only among the candidates."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from shared.policies.routing import ROUTERS, RoutingCandidate, with_room
from shared.protocol.messages import Load
from shared.protocol.subjects import instance_name


def instance(name: str, num_sessions: int = 0, queue_tokens: int = 0, num_since: int = 0) -> RoutingCandidate:
    return RoutingCandidate(
        f"{name}.000000000000", Load(num_sessions=num_sessions, queue_tokens=queue_tokens), num_since
    )


def chosen(policy: str, candidates: list[RoutingCandidate], times: int, seed: int = 0) -> Counter[str]:
    router, rng = ROUTERS[policy](), random.Random(seed)
    return Counter(instance_name(router.choose(candidates, rng).instance_id) for _ in range(times))


@pytest.mark.parametrize("policy", ROUTERS)
def test_no_candidate_no_choice(policy: str) -> None:
    assert ROUTERS[policy]().choose([], random.Random(0)) is None


def test_random_gives_everybody_about_the_same() -> None:
    counts = chosen("random", [instance(name, 9) for name in "abc"], 3000)
    assert all(900 < counts[name] < 1100 for name in "abc")


def test_round_robin_takes_turns_and_goes_on_when_the_last_one_left() -> None:
    router, rng = ROUTERS["round-robin"](), random.Random(0)
    a, b, c = (instance(name) for name in "abc")
    assert [router.choose([c, a, b], rng) for _ in range(4)] == [a, b, c, a]
    assert router.choose([c], rng) == c
    assert router.choose([a, b], rng) == a


def test_the_shortest_queue_counts_what_was_sent_since_the_heartbeat() -> None:
    assert chosen("jsq", [instance("a", 2), instance("b", 1), instance("c", 1, num_since=2)], 5) == {"b": 5}


def test_equal_sessions_are_told_apart_by_queued_tokens() -> None:
    assert chosen("jsq", [instance("a", 1, queue_tokens=50), instance("b", 1, queue_tokens=10)], 3) == {"b": 3}


def test_two_choices_prefers_the_less_loaded_and_never_takes_the_worst_of_all() -> None:
    counts = chosen("jsq2", [instance("a", 0), instance("b", 5), instance("c", 9)], 3000)
    assert counts["a"] > 1.8 * counts["b"] > 0
    assert counts["c"] == 0


def test_eight_choices_give_each_of_a_few_instances_one_session_before_any_has_two() -> None:
    router, rng = ROUTERS["jsq8"](), random.Random(0)
    given = dict.fromkeys("abcdefgh", 0)
    for _ in given:
        name = router.choose([instance(each, num_since=num) for each, num in given.items()], rng).instance_id[0]
        given[name] += 1
    assert set(given.values()) == {1}


def test_gateways_with_the_same_loads_do_not_all_choose_the_same_of_equal_instances() -> None:
    idle = [instance(name) for name in "abcd"]
    first = Counter(ROUTERS["jsq8"]().choose(idle, random.Random(gateway)).instance_id[0] for gateway in range(400))
    assert all(60 < first[name] < 140 for name in "abcd")


def test_sessions_taken_away_since_the_heartbeat_make_room_and_never_more_than_all() -> None:
    assert chosen("jsq", [instance("a", 1), instance("b", 2, num_since=-2)], 3) == {"b": 3}
    assert chosen("jsq", [instance("a", 0, queue_tokens=1), instance("b", 1, 5, num_since=-3)], 3) == {"a": 3}


def placed(
    name: str, rtt_ms: float, step_ms: float, num_sessions: int, num_since: int = 0, batch: int = 1
) -> RoutingCandidate:
    load = Load(num_sessions=num_sessions, step_ms=step_ms, rtt_ms=rtt_ms, batch=batch)
    return RoutingCandidate(f"{name}.000000000000", load, num_since)


def test_rtt_aware_jsq_weighs_a_near_queue_against_a_far_empty_place() -> None:
    near, far = placed("near", 5, 10, num_sessions=3), placed("far", 60, 10, num_sessions=0)
    assert chosen("rtt-jsq", [near, far], 3) == {"near": 3}
    assert chosen("rtt-jsq", [placed("near", 5, 10, num_sessions=3, num_since=4), far], 3) == {"far": 3}


def test_rtt_aware_jsq_knows_that_the_sessions_of_a_step_do_not_wait_for_each_other() -> None:
    shared, far = placed("shared", 5, 40, num_sessions=7, batch=7), placed("far", 60, 10, num_sessions=0)
    assert chosen("rtt-jsq", [shared, far], 3) == {"shared": 3}
    assert chosen("rtt-jsq", [placed("turns", 5, 40, num_sessions=7), far], 3) == {"far": 3}


@pytest.mark.parametrize("num_sessions", [0, 3])
def test_rtt_aware_jsq_takes_a_step_to_have_no_more_sessions_than_there_are(num_sessions: int) -> None:
    honest = placed("honest", 5, 30, num_sessions, batch=num_sessions)
    liar = placed("liar", 5, 40, num_sessions, batch=1 << 48)
    assert chosen("rtt-jsq", [honest, liar], 3) == {"honest": 3}


def test_rtt_aware_jsq_prefers_the_faster_of_equally_loaded_instances() -> None:
    assert chosen("rtt-jsq", [placed("slow", 5, 30, 2), placed("fast", 5, 10, 2)], 3) == {"fast": 3}


def test_rtt_aware_jsq_takes_an_instance_without_a_step_yet_for_as_slow_as_the_others() -> None:
    fresh, known = placed("fresh", 5, 0, num_sessions=6), placed("known", 5, 10, num_sessions=2)
    assert chosen("rtt-jsq", [fresh, known], 3) == {"known": 3}
    assert chosen("rtt-jsq", [placed("a", 5, 0, 1), placed("b", 5, 0, 0)], 3) == {"b": 3}


def test_candidates_with_room_are_those_with_free_kv_cache_beyond_what_was_given_since() -> None:
    candidates = [
        RoutingCandidate("full", Load(free_kv_tokens=63, kv_tokens=128)),
        RoutingCandidate("given away", Load(free_kv_tokens=128, kv_tokens=128), 2, kv_since=65),
        RoutingCandidate("free", Load(free_kv_tokens=128, kv_tokens=128), 1, kv_since=64),
        RoutingCandidate("unknown", Load(num_sessions=9), 3, kv_since=640),
    ]
    assert [candidate.instance_id for candidate in with_room(candidates, 64)] == ["free", "unknown"]
