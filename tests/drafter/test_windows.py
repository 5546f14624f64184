"""A drafter follows window decisions: those of the leading controller, and its request's own."""

from __future__ import annotations

import time

import pytest

from awc.policy import DEFAULT_CHOICE
from shared.protocol.messages import Draft, Speculation, WindowDecision
from tests.drafter.conftest import PROMPT, TEXT, Start, World
from tests.fakes import answer
from tests.peers import until

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


def now_ms() -> float:
    return time.monotonic() * 1e3


async def test_a_decision_changes_the_window_of_running_and_of_new_sessions(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.decide(12, chunk=3)
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    later = await world.speculate(prompt=(9,))
    assert await world.drafted(later, 0, 12) == answer((9,), 12)
    await world.settled()
    assert [len(draft.token_ids) for draft in world.drafts(later)] == [0, 3, 3, 3, 3]
    assert world.count("drafter_drafted_tokens") == 24


async def test_a_decision_says_whether_the_verifier_may_run_free(world: World) -> None:
    await world.decide(4, chunk=4, free_run=False)
    request = await world.speculate()
    await world.drafted(request, 0, 4)
    assert [(len(draft.token_ids), draft.free_run) for draft in world.drafts(request)] == [(0, False), (4, False)]


async def test_a_window_of_zero_stops_drafting(world: World) -> None:
    await world.decide(0, chunk=1)
    request = await world.speculate()
    await world.verifier.find(Draft)
    await world.settled()
    assert world.count("drafter_drafted_tokens") == 0
    assert [(draft.token_ids, draft.free_run) for draft in world.drafts(request)] == [((), True)]


async def test_a_window_that_shrinks_during_a_step_and_grows_again_costs_nothing_but_the_guess(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    world.model.gate.shut()
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:1], accepted=1))
    await world.model.gate.held()
    await world.decide(2)
    await world.settled()
    world.model.gate.open()
    state = world.drafter.table.get(request.session_id).state
    await until(lambda: state.computed == len(state.tokens))  # the guess behind them was thrown away
    await world.decide(12, sequence=2)
    assert await world.drafted(request, 0, 13) == TEXT[:13]
    assert world.count("drafter_failed_steps") == 0


async def test_a_window_ends_early_behind_an_unsure_guess_until_that_one_has_a_verdict(world: World) -> None:
    unsure = len(PROMPT) + 2
    world.model.logit = lambda position: 1.0 if position == unsure else 9.0
    await world.decide(WINDOW, chunk=WINDOW, min_confidence=0.5)
    request = await world.speculate()
    assert await world.drafted(request, 0, 3) == TEXT[:3]
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:2], accepted=2))
    await world.settled()
    assert [len(draft.token_ids) for draft in world.drafts(request)] == [0, 3]
    assert world.count("drafter_unsure_guesses") == 1
    await world.tell(world.verifier, world.verdict(request, 2, TEXT[2:3], accepted=1))
    assert await world.drafted(request, 3, WINDOW) == TEXT[3 : 3 + WINDOW]
    assert world.count("drafter_unsure_guesses") == 1


async def test_a_lowered_threshold_lets_a_stopped_session_go_on(world: World) -> None:
    await world.decide(WINDOW, min_confidence=0.5)
    request = await world.speculate()
    await world.drafted(request, 0, 1)
    await world.decide(WINDOW, sequence=2)
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]


async def test_a_request_with_a_window_of_its_own_is_not_steered(world: World) -> None:
    await world.decide(12, chunk=3)
    request = await world.speculate(speculation=Speculation("static", 5))
    await world.drafted(request, 0, 5)
    await world.decide(16, chunk=2, sequence=2)
    await world.settled()
    assert world.count("drafter_drafted_tokens") == 5


async def test_a_decision_for_somebody_else_or_an_older_one_is_dropped(world: World) -> None:
    await world.decide(12, sequence=5)
    await world.decide(3, sequence=5)
    await world.tell(
        world.controller, WindowDecision("other.0123456789ab", world.verifier.instance_id, 3, 2, True, "test", 9)
    )
    request = await world.speculate()
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    assert world.dropped("decision not followed") == 2


async def test_an_old_decision_gives_way_to_the_default_in_running_sessions_too(start: Start) -> None:
    async with start(decision_ttl_s=0.2, report_s=0.05) as world:
        await world.decide(2)
        request = await world.speculate()
        assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
        assert world.drafter.steering.choice(world.verifier.instance_id, now_ms()) == DEFAULT_CHOICE


async def test_a_draining_controller_is_left_for_the_other_at_once(world: World) -> None:
    second = await world.meet("controller", "zzz")
    await world.controller.send_heartbeat()
    await world.decide(4, sequence=7)
    await second.send_heartbeat()
    await world.decide(12, sequence=1, sender=second)
    await world.settled()
    assert world.dropped("decision not followed") == 1
    await world.controller.send_heartbeat(draining=True)
    await world.decide(12, sequence=2, sender=second)
    await world.decide(4, sequence=8)
    request = await world.speculate()
    assert await world.drafted(request, 0, 12) == TEXT[:12]
    assert world.dropped("decision not followed") == 2


async def test_nobody_can_say_in_a_controllers_name_that_it_leaves(world: World) -> None:
    stranger = await world.meet("controller", "stranger")
    await world.controller.send_heartbeat()
    await stranger.send_heartbeat(instance_id=world.controller.instance_id, draining=True)
    await world.decide(3, sequence=1, sender=stranger)
    await world.settled()
    assert world.dropped("foreign heartbeat") == 1
    assert world.dropped("decision not followed") == 1
