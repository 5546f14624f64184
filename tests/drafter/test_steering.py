"""Whose decisions a drafter follows, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from awc.policy import DEFAULT_CHOICE, WindowChoice
from services.edge_drafter import steering as module
from services.edge_drafter.steering import MOST_UNTOLD, WARM_UP_REPORTS, Steering, weight
from shared.protocol.messages import Heartbeat, Load, WindowDecision
from shared.timing import STALE_HEARTBEATS

DRAFTER = "edge.0123456789ab"
VERIFIER, OTHER_VERIFIER = "cloud.0123456789ab", "cloud.ba9876543210"
CONTROLLERS = [f"controller-{name}.0123456789ab" for name in "abc"]
FIRST, SECOND, THIRD = sorted(CONTROLLERS, key=lambda each: weight(each, DRAFTER), reverse=True)
TTL_MS = 1000.0
INTERVAL_S = 0.1
STALE_MS = STALE_HEARTBEATS * INTERVAL_S * 1e3


def heartbeat(controller_id: str, draining: bool = False) -> Heartbeat:
    return Heartbeat("controller", controller_id, INTERVAL_S, [], 0, 0, "", Load(), draining)


def decision(
    window: int,
    sequence: int = 1,
    verifier_id: str = VERIFIER,
    chunk: int = 2,
    free_run: bool = True,
    min_confidence: float = 0.0,
) -> WindowDecision:
    return WindowDecision(DRAFTER, verifier_id, window, chunk, free_run, "test", sequence, min_confidence)


def following(*controllers: str, now: float = 0.0) -> Steering:
    steering = Steering(DRAFTER, TTL_MS)
    for controller_id in controllers:
        steering.on_heartbeat(heartbeat(controller_id), now)
    return steering


def test_without_a_decision_the_default_holds() -> None:
    assert Steering(DRAFTER, TTL_MS).choice(VERIFIER, 0.0) == DEFAULT_CHOICE


def test_a_decision_holds_for_its_verifier_only() -> None:
    steering = following(FIRST)
    assert steering.decide(decision(12, chunk=3, free_run=False, min_confidence=0.4), FIRST, 0.0)
    assert steering.choice(VERIFIER, 0.0) == WindowChoice(12, 3, False, 0.4)
    assert steering.choice(OTHER_VERIFIER, 0.0) == DEFAULT_CHOICE


def test_a_decision_may_come_before_the_first_heartbeat() -> None:
    assert Steering(DRAFTER, TTL_MS).decide(decision(12), FIRST, 0.0)


def test_an_older_or_repeated_decision_changes_nothing() -> None:
    steering = following(FIRST)
    assert steering.decide(decision(12, sequence=5), FIRST, 0.0)
    assert not steering.decide(decision(3, sequence=5), FIRST, 0.0)
    assert not steering.decide(decision(3, sequence=4), FIRST, 0.0)
    assert steering.choice(VERIFIER, 0.0).window == 12
    assert steering.decide(decision(3, sequence=6), FIRST, 0.0)


def test_numbers_of_one_verifier_say_nothing_about_another() -> None:
    steering = following(FIRST)
    assert steering.decide(decision(12, sequence=5), FIRST, 0.0)
    assert steering.decide(decision(3, 1, OTHER_VERIFIER), FIRST, 0.0)


def test_the_live_controller_that_the_drafter_ranks_first_leads_at_first() -> None:
    steering = following(SECOND, FIRST)
    assert steering.leader(0.0) == FIRST
    assert not steering.decide(decision(3), SECOND, 0.0)
    assert steering.decide(decision(12), FIRST, 0.0)


FULL = 1 << 48
EXTREMES: list[dict[str, object]] = [
    *({"models": models} for models in ([], ["m"] * 64)),
    *({field: value} for field in ("max_context", "vocab_size") for value in (0, FULL)),
    *({field: value} for field in ("fingerprint", "provider", "machine") for value in ("", "x" * 64)),
    *({"load": Load(**{field: FULL})} for field in Load.__struct_fields__),
]


@pytest.mark.parametrize("lie", EXTREMES, ids=str)
def test_what_a_controller_says_of_models_and_load_makes_it_no_leader(lie: dict[str, object]) -> None:
    steering = following(FIRST)
    steering.on_heartbeat(msgspec.structs.replace(heartbeat(SECOND), **lie), 0.0)
    assert steering.leader(0.0) == FIRST
    assert not steering.decide(decision(3), SECOND, 0.0)
    steering.on_heartbeat(heartbeat(SECOND), STALE_MS)
    steering.on_heartbeat(msgspec.structs.replace(heartbeat(FIRST), **lie), STALE_MS - 1)
    assert steering.leader(STALE_MS - 1) == FIRST, "nor ends that it leads"
    assert steering.leader(2 * STALE_MS - 1) == SECOND, "nor makes it last"


def test_a_controller_that_ranks_before_the_leader_decides_beside_it_and_leads_when_it_has_warmed_up() -> None:
    steering = following(SECOND, THIRD)
    assert steering.named(0.0) == (SECOND, THIRD)
    steering.on_heartbeat(heartbeat(FIRST), 0.0)
    assert [steering.named(0.0) for _ in range(WARM_UP_REPORTS)] == [(SECOND, FIRST)] * WARM_UP_REPORTS
    assert steering.leader(0.0) == SECOND
    assert steering.named(0.0) == (FIRST, SECOND)
    assert not steering.decide(decision(3), SECOND, 0.0)


def test_a_controller_that_was_silent_warms_up_again() -> None:
    steering = following(SECOND, FIRST, now=0.0)
    assert steering.leader(0.0) == FIRST
    steering.on_heartbeat(heartbeat(SECOND), STALE_MS)
    assert steering.leader(STALE_MS) == SECOND
    steering.on_heartbeat(heartbeat(FIRST), STALE_MS)
    assert {steering.named(STALE_MS) for _ in range(WARM_UP_REPORTS)} == {(SECOND, FIRST)}
    steering.on_heartbeat(heartbeat(SECOND), 2 * STALE_MS - 1)
    steering.on_heartbeat(heartbeat(FIRST), 2 * STALE_MS)
    assert {steering.named(2 * STALE_MS) for _ in range(WARM_UP_REPORTS)} == {(SECOND, FIRST)}
    assert steering.named(2 * STALE_MS) == (FIRST, SECOND)


def test_a_leader_that_ends_is_followed_by_the_controller_that_has_decided_beside_it() -> None:
    steering = following(FIRST, THIRD, SECOND)
    assert steering.named(0.0) == (FIRST, SECOND)
    steering.on_heartbeat(heartbeat(FIRST, draining=True), 1.0)
    assert steering.named(1.0) == (SECOND, THIRD)


def test_a_leader_that_tells_nothing_on_many_reports_gives_way_for_good() -> None:
    steering = following(FIRST, SECOND)
    for number in range(2 * MOST_UNTOLD):
        if number % (MOST_UNTOLD - 1) == 0:
            assert steering.decide(decision(4, number + 1), FIRST, 0.0)
        assert steering.named(0.0) == (FIRST, SECOND)
    for _ in range(MOST_UNTOLD):
        steering.named(0.0)
    for number in range(WARM_UP_REPORTS + 1):
        assert steering.decide(decision(4, number + 1), SECOND, 0.0)
        assert steering.named(0.0) == (SECOND, FIRST)


def test_the_only_controller_leads_though_it_tells_nothing() -> None:
    steering = following(FIRST)
    assert {steering.named(0.0) for _ in range(2 * MOST_UNTOLD)} == {(FIRST,)}


def test_controllers_lead_equally_many_drafters_and_one_that_ends_leaves_the_others_with_theirs() -> None:
    drafters = [f"edge-{number}.0123456789ab" for number in range(300)]
    led = {drafter: led_by(drafter, CONTROLLERS) for drafter in drafters}
    shares = Counter(led.values())
    assert all(70 <= shares[controller] <= 130 for controller in CONTROLLERS), shares
    gone, *others = CONTROLLERS
    assert all(led_by(drafter, others) == leader for drafter, leader in led.items() if leader != gone)


def led_by(drafter_id: str, controllers: Sequence[str]) -> str | None:
    steering = Steering(drafter_id, TTL_MS)
    for controller in controllers:
        steering.on_heartbeat(heartbeat(controller), 0.0)
    return steering.leader(0.0)


def test_a_leader_whose_heartbeat_stops_is_followed_by_the_next() -> None:
    steering = following(FIRST, SECOND)
    assert steering.decide(decision(12, sequence=9), FIRST, 0.0)
    steering.on_heartbeat(heartbeat(SECOND), STALE_MS - 1)
    assert not steering.decide(decision(3, sequence=1), SECOND, STALE_MS - 1)
    assert steering.decide(decision(3, sequence=2), SECOND, STALE_MS)
    assert steering.choice(VERIFIER, STALE_MS).window == 3


def test_a_leader_that_drains_is_left_at_once_but_its_last_decision_holds_until_there_is_another() -> None:
    steering = following(FIRST, SECOND, THIRD)
    assert steering.decide(decision(12, sequence=9), FIRST, 0.0)
    steering.on_heartbeat(heartbeat(FIRST, draining=True), 1.0)
    assert steering.leader(1.0) == SECOND
    assert steering.choice(VERIFIER, 1.0).window == 12
    assert not steering.decide(decision(4, sequence=10), FIRST, 1.0)
    assert steering.decide(decision(3, sequence=1), SECOND, 1.0)


def test_a_controller_that_drains_without_having_been_heard_of_changes_nothing() -> None:
    steering = following(SECOND)
    steering.on_heartbeat(heartbeat(FIRST, draining=True), 0.0)
    assert steering.leader(0.0) == SECOND


def test_a_controller_that_comes_back_after_draining_is_heard_again() -> None:
    steering = following(FIRST)
    steering.on_heartbeat(heartbeat(FIRST, draining=True), 1.0)
    assert steering.leader(1.0) is None
    steering.on_heartbeat(heartbeat(FIRST), 2.0)
    assert steering.leader(2.0) == FIRST


def test_a_new_leaders_numbers_start_anew() -> None:
    steering = following(FIRST)
    assert steering.decide(decision(12, sequence=100), FIRST, 0.0)
    steering.on_heartbeat(heartbeat(SECOND), STALE_MS)
    assert steering.decide(decision(3, sequence=1), SECOND, STALE_MS)


def test_a_decision_that_is_not_repeated_gives_way_to_the_default() -> None:
    steering = following(FIRST)
    steering.decide(decision(12), FIRST, 0.0)
    steering.decide(decision(4, 1, OTHER_VERIFIER), FIRST, 10.0)
    assert steering.choice(VERIFIER, TTL_MS - 1).window == 12
    assert steering.expire(TTL_MS - 1) == []
    assert steering.choice(VERIFIER, TTL_MS) == DEFAULT_CHOICE
    assert steering.expire(TTL_MS) == [VERIFIER]
    assert steering.expire(TTL_MS) == []
    assert steering.choice(OTHER_VERIFIER, TTL_MS).window == 4


def test_repeating_a_decision_prolongs_it() -> None:
    steering = following(FIRST)
    steering.decide(decision(12, sequence=1), FIRST, 0.0)
    steering.decide(decision(12, sequence=2), FIRST, 900.0)
    assert steering.choice(VERIFIER, 1800.0).window == 12


@pytest.mark.parametrize(("window", "chunk"), [(2, 3), (0, 2)])
def test_a_chunk_that_the_window_can_not_hold_is_no_decision(window: int, chunk: int) -> None:
    steering = following(FIRST)
    assert not steering.decide(decision(window, chunk=chunk), FIRST, 0.0)
    assert steering.choice(VERIFIER, 0.0) == DEFAULT_CHOICE


def test_made_up_controllers_and_verifiers_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTROLLERS", 2)
    monkeypatch.setattr(module, "MAX_PAIRS", 2)
    steering = following(SECOND, THIRD, FIRST)
    assert steering.leader(0.0) == SECOND
    verifiers = [f"cloud.{number:012x}" for number in range(3)]
    assert [steering.decide(decision(4, 1, verifier_id), SECOND, 0.0) for verifier_id in verifiers] == [
        True, True, False,
    ]  # fmt: skip
    assert steering.decide(decision(5, 2, verifiers[0]), SECOND, 0.0)
    steering.on_heartbeat(heartbeat(THIRD), 200.0)
    assert steering.leader(STALE_MS) == THIRD
