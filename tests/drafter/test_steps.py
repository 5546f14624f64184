"""Draft steps that several sessions share: which sessions, failures, heartbeats and reported times."""

from __future__ import annotations

import pytest

from awc.policy import DEFAULT_CHOICE
from services.edge_drafter.loop import StepCost
from shared.protocol.messages import Close, Failure, Heartbeat, Sampling, Speculate
from tests.drafter.conftest import Start, World
from tests.fakes import answer

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


async def speculate_together(world: World, numbers: range, **options: object) -> list[Speculate]:
    """Sessions with prompts of one token, which the drafter hears of before its next step."""
    world.model.gate.shut()
    requests = [await world.speculate(prompt=(number,), **options) for number in numbers]
    await world.settled()
    world.model.steps.clear()
    return requests


async def test_sessions_that_are_ready_step_together_and_guess_what_they_guess_alone(world: World) -> None:
    requests = await speculate_together(world, range(1, 6))
    world.model.gate.open()
    for number, request in enumerate(requests, start=1):
        assert await world.drafted(request, 0, WINDOW) == answer((number,), WINDOW)
    assert {len(step) for step in world.model.steps[1:-1]} == {5}  # the first began before all had come
    assert len(world.model.steps) <= WINDOW + 1
    assert world.registry.get_sample_value("dsd_drafter_step_sessions_sum") == 5 * WINDOW
    assert world.registry.get_sample_value("dsd_drafter_step_sessions_count") == len(world.model.steps)


async def test_sessions_of_a_model_that_takes_one_row_take_turns(world: World) -> None:
    world.model.max_rows = 1
    requests = await speculate_together(world, range(1, 4))
    world.model.gate.open()
    for request in requests:
        await world.drafted(request, 0, WINDOW)
    assert [first for ((first, _),) in world.model.steps[:9]] == [1, 2, 3] * 3


async def test_each_row_is_drawn_with_its_own_noise_and_penalties(world: World) -> None:
    options = [Sampling(1.0, seed=5), Sampling(), Sampling(1.0, seed=6, presence_penalty=1.5)]
    alone = []
    for sampling in options:
        request = await world.speculate((3,), sampling=sampling)
        alone.append(await world.drafted(request, 0, WINDOW))
    assert len(set(map(tuple, alone))) == len(options)
    world.model.gate.shut()
    requests = [await world.speculate((3,), sampling=sampling) for sampling in options]
    await world.settled()
    world.model.steps.clear()
    world.model.gate.open()
    assert [await world.drafted(request, 0, WINDOW) for request in requests] == alone
    assert max(len(step) for step in world.model.steps) == len(options)


async def test_a_row_that_fails_costs_its_session_only(world: World) -> None:
    world.model.poison = answer((2,), 3)[-1]
    requests = await speculate_together(world, range(1, 5))
    world.model.gate.open()
    for number in (1, 3, 4):
        text = answer((number,), WINDOW)
        assert world.model.poison not in text, "the test needs another poison"
        assert await world.drafted(requests[number - 1], 0, WINDOW) == text
    failure = await world.gateway.find(Failure, lambda failure: failure.code == "internal")
    assert (failure.session_id, failure.retryable) == (requests[1].session_id, True)
    await world.settled()
    assert world.count("drafter_failed_steps") == 1
    assert len(world.drafter.table) == 3


async def test_a_rollback_during_a_step_costs_no_other_session_its_guess(world: World) -> None:
    world.model.is_right = lambda position: position != 4
    requests = await speculate_together(world, range(1, 4))
    world.model.gate.open()
    for request in requests:
        await world.drafted(request, 0, WINDOW)
    world.model.gate.shut()
    for number, request in enumerate(requests, start=1):
        await world.tell(world.verifier, world.verdict(request, 0, answer((number,), 2), accepted=2))
    await world.settled()
    world.model.gate.let()  # a step that began before the last verdict came
    await world.model.gate.held()
    await world.tell(world.verifier, world.verdict(requests[0], 2, answer((1,), 4)[2:], accepted=1, epoch=1))
    await world.settled()
    world.model.gate.open()
    assert await world.drafted(requests[0], 4, WINDOW, epoch=1) == answer((1,), 4 + WINDOW)[4:]
    for request in requests[1:]:
        assert len(await world.drafted(request, 0, WINDOW + 2)) == WINDOW + 2


async def test_a_session_that_ends_during_a_step_leaves_the_others_theirs(world: World) -> None:
    requests = await speculate_together(world, range(1, 4))
    world.model.gate.let(3)
    await world.model.gate.held()
    await world.tell(world.gateway, Close(requests[2].session_id, 1))
    await world.settled()
    world.model.gate.open()
    for number, request in enumerate(requests[:2], start=1):
        assert await world.drafted(request, 0, WINDOW) == answer((number,), WINDOW)
    assert len(world.drafter.table) == 2


async def test_heartbeats_tell_the_sessions_of_the_last_step(start: Start) -> None:
    async with start(heartbeat_s=0.05) as world:
        await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.batch == 0)
        await speculate_together(world, range(1, 5))
        world.model.gate.let(3)
        await world.gateway.find(Heartbeat, lambda heartbeat: heartbeat.load.batch == 4)


def test_the_time_between_guesses_of_a_session_is_that_of_a_common_step() -> None:
    cost = StepCost(max_rows=16)
    for _ in range(100):
        cost.observe(10.0, 1)
        cost.observe(10.0 + 7 * 3.0, 8)
    assert [cost.guess_ms(num) for num in (0, 1, 2, 8, 16)] == pytest.approx([10.0, 10.0, 13.0, 31.0, 55.0], rel=0.02)
    assert cost.guess_ms(32) == pytest.approx(2 * 55.0, rel=0.02), "they take turns in two steps"


@pytest.mark.parametrize(("alone_ms", "further_ms"), [(1.0, 0.15), (5.0, 0.5), (10.0, 3.0), (20.0, 0.0), (100.0, 14.0)])
@pytest.mark.parametrize("num_rows", [1, 4, 8])
def test_the_time_between_guesses_is_that_of_the_steps_that_there_are_on_machines_of_any_speed(
    alone_ms: float, further_ms: float, num_rows: int
) -> None:
    cost = StepCost(max_rows=16)
    for rows in (1, 1, 1, 1, 4, 4, 4, 4, *[num_rows] * 400):
        cost.observe(alone_ms + further_ms * (rows - 1), rows)
    assert cost.guess_ms(num_rows) == pytest.approx(alone_ms + further_ms * (num_rows - 1), rel=0.02)
    for other in (1, 16):
        true_ms = alone_ms + further_ms * (other - 1)
        assert cost.guess_ms(other) == pytest.approx(true_ms, rel=0.1), "what a step with one takes is not forgotten"


def test_where_all_steps_are_slower_a_step_of_another_number_is_taken_to_be_slower_too() -> None:
    cost = StepCost(max_rows=16)
    for rows in (1, 1, 1, 1, *[8] * 400):
        cost.observe((13.0 + 5.0 * (rows - 1)) * (1.4 if rows == 8 else 1), rows)
    assert cost.guess_ms(8) == pytest.approx(1.4 * 48.0, rel=0.02)
    assert 13.0 < cost.guess_ms(1) < 1.4 * 13.0


def test_noise_makes_no_step_of_more_sessions_shorter() -> None:
    cost = StepCost(max_rows=16)
    for elapsed_ms, num_rows in [(12.0, 1), (9.0, 8)] * 50:
        cost.observe(elapsed_ms, num_rows)
    assert [cost.guess_ms(num) for num in (1, 8, 16)] == pytest.approx([10.5] * 3, rel=0.02)


def test_a_machine_that_slows_down_is_noticed_from_the_steps_that_there_are() -> None:
    """A step of two sessions that takes long does not make one of eight take many times as long."""
    cost = StepCost(max_rows=16)
    for _ in range(50):
        cost.observe(10.0, 1)
        cost.observe(31.0, 8)
    for _ in range(5):
        cost.observe(26.0, 2)
    assert 31.0 < cost.guess_ms(8) < 60.0
    for _ in range(100):
        cost.observe(62.0, 8)
    assert cost.guess_ms(8) == pytest.approx(62.0, rel=0.05)


def test_the_time_between_guesses_of_a_session_counts_the_turns_of_others() -> None:
    cost = StepCost(max_rows=1)
    assert cost.guess_ms(4) == 0.0
    cost.observe(10.0, 1)
    assert [cost.guess_ms(num) for num in (1, 4)] == pytest.approx([10.0, 40.0], rel=0.02)
