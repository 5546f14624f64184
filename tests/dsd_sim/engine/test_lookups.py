"""Guesses that simulated verifiers make from the text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dsd_sim.engine import cloud, verify_session
from dsd_sim.engine.acceptance import RecordedAnswer, Replay, TextLookups
from dsd_sim.engine.records import NEVER
from dsd_sim.engine.world import World
from dsd_sim.scenario.guesses import looked_up
from dsd_sim.scenario.scenario import Lookup
from services.cloud_verifier.settings import VerifierSettings
from shared.data.recording import Recorded
from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.verifier_session import VerifierSession
from tests.dsd_sim.builders import a_fleet, a_world, check_fates

BUDGET, CHUNK = 48, 16
MOST = VerifierSettings.model_fields["lookup_tokens"].default
FLAT, STEEP = (10.0, 0, 0, 0, 0, 0, 0), (10.0, 0, 3.0, 0, 0, 0, 0)  # what a further token costs


def repeating(seed: int, num_prompt: int = 70, num_tokens: int = 250) -> Recorded:
    """A text of phrases that come again and again, in any order."""
    chance = random.Random(seed)
    phrases = [[chance.randrange(50) for _ in range(chance.randint(3, 12))] for _ in range(8)]
    ids: list[int] = []
    while len(ids) < num_prompt + num_tokens:
        ids += chance.choice(phrases)
    answer = tuple(ids[num_prompt : num_prompt + num_tokens])
    return Recorded(tuple(ids[:num_prompt]), answer, (False,) * num_tokens, (0.5,) * num_tokens)


def served(answer: Recorded, weights: tuple[float, ...]) -> tuple[int, int]:
    """Passes of a session of the services without a drafter, and tokens that it looked up."""
    prompt, truth = TokenIds(answer.prompt_ids), [*answer.prompt_ids, *answer.target_ids]
    limit = len(answer.target_ids)
    order = Open("s", 0, None, prompt, NO_TOKENS, Sampling(), NO_TOKENS, limit, free_run=True, lookup=True)
    session, cost = VerifierSession.opened(order, "g", 0.0), PassCost()
    cost.weights = np.array(weights)
    batcher = Batcher(BUDGET, CHUNK, cost)
    while session.finish is None:
        session.look_up(MOST)
        candidate = BatchCandidate(session.num_todo, session.chances, session.computed, 1.0)
        (share,) = batcher.form([candidate])
        row = session.begin_pass(share.max_tokens, share.max_guesses)
        session.end_pass(row, truth[row.base : row.base + row.num_draws], PassInfo(10.0, 1, 0.0, 1), 0.0)
    return session.num_passes, session.tally.looked_up


def simulated(answers: list[Recorded], weights: tuple[float, ...], most: int = MOST, device: int = -1) -> World:
    """One request, with one of these texts."""
    tokens, prompt = len(answers[0].target_ids), len(answers[0].prompt_ids)
    world = a_world(1, tokens=tokens, weights=weights, batching=cloud.WORTH)
    world.requests["device"], world.requests["prompt"] = device, prompt
    world.nodes["token_budget"], world.nodes["prefill_chunk"] = BUDGET, CHUNK
    world.nodes["lookup_tokens"] = most
    a_fleet(world, lookups=TextLookups(tuple(map(looked_up, answers)))).run()
    return world


@pytest.mark.parametrize("weights", [FLAT, STEEP])
@pytest.mark.parametrize("seed", range(5))
def test_a_session_without_a_drafter_takes_as_many_passes_as_the_services(
    seed: int, weights: tuple[float, ...]
) -> None:
    answer = repeating(seed)
    request = simulated([answer], weights).requests[0]
    assert (request["passes"], request["looked_up"]) == served(answer, weights)
    assert request["looked_up"] > len(answer.target_ids) / 4
    assert request["passes"] < 0.8 * len(answer.target_ids)


def test_guesses_from_the_text_come_behind_those_of_a_drafter_and_take_none_of_their_fates() -> None:
    world = simulated([repeating(1)], FLAT, device=0)
    check_fates(world)
    alone = simulated([repeating(1)], FLAT, most=0, device=0)
    assert world.requests["looked_up"][0] > 0 == alone.requests["looked_up"][0]
    assert world.requests["passes"][0] < alone.requests["passes"][0]


def test_guesses_from_the_text_begin_behind_those_of_the_drafter() -> None:
    world = a_world(1, tokens=50)
    places, batch = np.arange(51), np.zeros(1, np.int64)
    world.lookups[0] = np.stack((places % 8, places % 5, places % 3 + 2), axis=1)  # offered, right, match
    session, node = world.verifiers.view(np.recarray)[0], world.nodes.view(np.recarray)[0]
    node.lookup_tokens, prompt = 6, world.requests["prompt"][0]
    session.length = prompt + 10
    session.own_right, session.own_seen = np.arange(1, len(session.own_right) + 1), len(session.own_right) + 1
    found = []
    for pending in (0, 3, 5, 40):
        session.pending = pending
        cloud._look_up(world, node, batch, 1)
        found.append((session.own, session.own_wrong))
        chances = cloud._chances(world, batch, np.array([pending + session.own]))
        survival, own = verify_session.survival(session), [verify_session.own_chance(session, k) for k in range(6)]
        expected = [*np.full(pending, survival), *own[: session.own]]
        np.testing.assert_allclose(chances, np.cumprod(expected))
    # None of 2 is right at token 10; at 13 it is 3 of 5, and 3 have room; at 15 none of 7; the answer ends at 50.
    assert found == [(2, prompt + 10), (3, NEVER), (1, prompt + 15), (0, NEVER)]


def test_a_text_that_repeats_nothing_is_answered_as_without_guesses_from_it() -> None:
    numbers = tuple(range(200))
    answer = Recorded(numbers[:50], numbers[50:], (False,) * 150, (0.5,) * 150)
    found, alone = simulated([answer], STEEP), simulated([answer], STEEP, most=0)
    assert found.requests["looked_up"][0] == 0
    assert found.requests["done_ms"][0] == alone.requests["done_ms"][0]


def test_before_each_token_stand_the_guesses_that_the_text_so_far_offers() -> None:
    answer = Recorded((1, 2, 3, 4), (1, 2, 3, 9, 1, 2, 3), (False,) * 7, (0.5,) * 7)
    told = looked_up(answer).tolist()
    assert [row[0] > 0 for row in told] == [False, False, True, True, False, False, True]
    assert told[2][1:] == [1, 2], "3 is right behind 1 2, and 4 is wrong"
    assert told[3][1:] == [0, 3]
    assert told[6][1:] == [1, 2]


def test_a_request_has_the_text_whose_guesses_are_replayed() -> None:
    answers = [repeating(seed) for seed in range(7)]
    tables = tuple(map(looked_up, answers))
    rights = [np.arange(250) % (2 + number) == 0 for number in range(7)]
    replay = Replay(tuple(RecordedAnswer(right, np.full(250, 0.5, np.float32)) for right in rights))
    for index in range(30):
        right, confidence = np.zeros(250, np.bool_), np.zeros(250, np.float32)
        lookups = np.zeros((250, 3), np.int8)
        replay.fill(right, confidence, np.random.default_rng(index))
        TextLookups(tables).fill(lookups, np.random.default_rng(index))
        (number,) = (k for k, each in enumerate(rights) if np.array_equal(each, right))
        assert np.array_equal(lookups, tables[number])


def test_a_scenario_has_as_many_as_a_verifier_by_default() -> None:
    assert Lookup(file="recording.jsonl").tokens == MOST
