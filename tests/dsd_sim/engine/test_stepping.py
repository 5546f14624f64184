"""Simulated devices share draft steps as drafters do, and a shared step takes the time of its formula."""

from __future__ import annotations

import random

import numpy as np
import pytest

from awc.policy import WindowChoice
from dsd_sim.engine import draft_session, edge
from dsd_sim.engine.pair_reports import SeenPairs
from dsd_sim.engine.world import STEP
from services.edge_drafter.sessions import DraftSessions
from shared.policies.stepping import form_step, turn_of
from shared.protocol.messages import MAX_WINDOW, NO_TOKENS, Sampling, Speculate, Speculation, TokenIds
from tests.dsd_sim.builders import SLIDING, a_fleet, a_world, check_fates, stop_and_wait, tpot_ms
from tests.fakes import FakeDraft

FEED = 16


def test_the_compiled_rule_forms_the_steps_of_the_drafters_rule() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        num_todo = rng.choice([1, 1, 1, 2, 3, 4, 9, 200], rng.integers(1, 20))
        max_rows = int(rng.integers(1, 17))
        turn = turn_of(num_todo, max_rows)
        assert draft_session.turn_of(num_todo, max_rows) == turn
        expected = form_step(num_todo, turn, max_rows, FEED)
        np.testing.assert_array_equal(edge.form_step(num_todo, turn, max_rows, FEED), expected)


@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_a_device_gives_its_sessions_the_steps_that_a_drafter_gives_them(max_rows: int) -> None:
    """Steps are cut short by rollbacks, so that sessions have various numbers of tokens to feed. A part of the longest
    prompts is left out."""
    rng, num = random.Random(max_rows), 6
    table = DraftSessions(FakeDraft(max_rows=max_rows), num)  # type: ignore[arg-type]
    world = a_world(num, tokens=500)
    device = world.devices[0]
    device["max_rows"], device["feed_tokens"], device["session_ms"], device["fed_ms"] = max_rows, FEED, 1.0, 5.0
    choice = WindowChoice(MAX_WINDOW, 2, free_run=True)
    for number in range(num):
        prompt = rng.choice([1, 2, 5, 40, 900])
        asked = Speculate(
            str(number), 1, "cloud.0123456789ab", TokenIds([7] * prompt), NO_TOKENS, Sampling(), NO_TOKENS, 400,
            Speculation(),
        )  # fmt: skip
        table.speculate(asked, "gateway.0123456789ab", choice, 0.0)
        world.slots[number]["request"] = number
        d = world.drafters[number : number + 1].view(np.recarray)[0]
        draft_session.start_drafter(d, prompt, 1000, prompt + 400, MAX_WINDOW, 2, True, 0.0)
        world.device_slots[0, number] = number
    device["num_sessions"] = num
    world.devices["num_failures"] = 0
    edge.draft(world, 0)
    token_ms = (device["step_ms"] + (FEED - 1) * device["fed_ms"]) / FEED
    for _ in range(60):
        shares = table.begin_step(FEED, token_ms)
        slots = world.device_rows[0, : device["num_rows"]].tolist()
        fed = [(slot, int(world.drafters[slot]["step_fed"])) for slot in slots]
        assert fed == [(int(share.slot.state.session_id), len(share.step.fed_ids)) for share in shares]
        for share in shares:
            state = share.slot.state
            if rng.random() < 0.2 and share.slot.gap is None:
                length = max(1, state.computed - rng.randrange(6))
                state._roll_back(length)
                record = world.drafters[int(state.session_id)]
                record["computed"], record["valid"] = min(record["computed"], length), min(record["valid"], length)
            state.end_step(share.step, 9)
        world.clock[0]["now"] = device["ends_at"]
        edge.step_ends(world, 0)
    assert max_rows == 1 or len(slots) > 1


def test_a_shared_step_takes_the_time_of_the_formula() -> None:
    """The first of three sessions has had two turns when all have read their prompts; then they step together."""
    world = a_world(3, tokens=20, choice=stop_and_wait(8), rtt_ms=5000, step_ms=5, num_logged=100)
    world.devices["max_rows"], world.devices["session_ms"], world.devices["fed_ms"] = 16, 1.5, 0.1
    a_fleet(world, rate=1.0).run()
    steps = world.log[world.log["kind"] == STEP][:10]
    assert steps["num"].tolist() == [16, 1, 16, 16, *[3] * 6]
    prompt_ms, alone_ms, shared_ms = 5 + 15 * 0.1, 5, 5 + 2 * 1.5
    assert steps["end"] - steps["start"] == pytest.approx([prompt_ms, alone_ms, prompt_ms, prompt_ms, *[shared_ms] * 6])


def test_a_device_that_shares_steps_drafts_more_for_many_sessions_than_one_that_takes_turns() -> None:
    tpots = {}
    for max_rows in (1, 16):
        world = a_world(8, tokens=400, weights=(40, 1, 0, 0, 0, 0, 0), step_ms=10)
        world.devices["max_rows"], world.devices["session_ms"] = max_rows, 2.0
        a_fleet(world, rate=0.9).run()
        tpots[max_rows] = tpot_ms(world).mean()
    assert tpots[16] < 0.8 * tpots[1]


def test_every_guess_of_a_shared_step_has_one_fate() -> None:
    world = a_world(60, num_devices=4, num_nodes=2, tokens=50, choice=SLIDING)
    rng = np.random.default_rng(3)
    world.requests["device"] = rng.integers(0, 4, 60)
    world.requests["arrival_ms"] = np.sort(rng.uniform(0, 3000, 60))
    world.requests["prompt"] = rng.integers(1, 300, 60)
    world.devices["max_rows"], world.devices["session_ms"] = 5, 2.0
    a_fleet(world, rate=0.7).run()
    check_fates(world)


def test_a_report_tells_the_time_between_guesses_of_the_sessions_that_there_are() -> None:
    world = a_world(1, step_ms=10)
    world.devices["session_ms"], world.devices["slowdown"] = 2.0, 1.5
    here = np.zeros(1, np.intp)
    for max_rows, num_sharing, expected in ((1, 0, 10), (1, 3, 30), (16, 1, 10), (16, 8, 24)):
        world.devices["max_rows"], world.pairs["num_sharing"] = max_rows, num_sharing
        assert SeenPairs.of(world, here, here).draft_ms.tolist() == pytest.approx([1.5 * expected])


def test_a_pair_counts_its_sessions_and_those_of_others_that_draft() -> None:
    world = a_world(4, num_nodes=2)
    world.requests["node"] = [0, 1, 1, 1]
    for slot in range(4):
        world.slots[slot]["request"] = slot
        world.device_slots[0, slot] = slot
        world.drafters[slot]["window"] = slot == 1
    world.devices["num_sessions"] = 4
    edge.absorb_all(world)
    assert world.pairs["num_sharing"].tolist() == [[2, 3]]


def test_a_device_with_one_session_gives_the_same_result_whether_its_steps_could_be_shared_or_not() -> None:
    results = []
    for max_rows in (1, 16):
        world = a_world(6, num_devices=6, tokens=300, rtt_ms=25)
        world.requests["device"] = np.arange(6)
        world.devices["max_rows"], world.devices["session_ms"], world.devices["fed_ms"] = max_rows, 2.0, 0.3
        world.devices["step_ms_per_1000"], world.devices["jitter_ms"] = 3.0, 2.0
        a_fleet(world, rate=0.8).run()
        results.append(world.requests.tobytes())
    assert results[0] == results[1]


def test_answers_to_polls_before_an_answers_first_pass_do_not_change_the_time_of_passes() -> None:
    world = a_world(2, tokens=3, rtt_ms=4, step_ms=3, weights=(900.0, 0, 0, 0, 0, 0, 0))
    world.requests["arrival_ms"] = 0.0, 20_000.0
    a_fleet(world, rate=0.6).run()
    pair = world.pairs[0, 0]
    assert (pair["pass_ms"], pair["batch"]) == (pytest.approx(900.0), pytest.approx(1.0))
