"""KV cache in DSD-Sim: the same admission, growth and preemption as in the services' session table."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from dsd_sim.engine import cloud, kv_cache, records, verify_session
from dsd_sim.engine.world import World
from services.cloud_verifier.loop import PassShare
from services.cloud_verifier.sessions import SessionSlot
from shared.policies.batching import Batcher, PassCost
from shared.policies.kv_cache import KV_AHEAD, likely_kv_tokens
from shared.protocol.messages import Draft, TokenIds
from tests.dsd_sim.builders import a_fleet, a_world
from tests.fakes import FakeTarget, answer, fake_engine
from tests.verifier.pass_by_pass import PassByPass, number_of

NUM_SESSIONS = 12
TOKEN_BUDGET, PREFILL_CHUNK = 300, 64
FIRST = likely_kv_tokens(16, KV_AHEAD)  # what a session with a long answer reserves at first


class FixedCost(PassCost):
    PRIOR = (5.0, 0.3, 0.2, 0.0, 0.0, 0.0, 0.4)


class BothVerifiers:
    """The services' session table and a simulated verifier, with the same sessions, guesses and passes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.slots: list[SessionSlot] = []
        self.batch: Sequence[PassShare] = []
        kv_tokens = rng.choice([768, 1280, 2560])
        batcher = Batcher(TOKEN_BUDGET, PREFILL_CHUNK, FixedCost())
        self.table = PassByPass(fake_engine(FakeTarget(), kv_tokens), batcher)
        self.w: World = a_world(NUM_SESSIONS, tokens=500, batching=cloud.WORTH, weights=FixedCost.PRIOR)
        nodes, requests = self.w.nodes, self.w.requests
        nodes["kv_tokens"] = nodes["free_kv"] = kv_tokens
        nodes["token_budget"], nodes["prefill_chunk"] = TOKEN_BUDGET, PREFILL_CHUNK
        requests["device"] = -1
        requests["prompt"] = [rng.randrange(3, 200) for _ in requests]
        requests["max_tokens"] = requests["tokens"] = [rng.choice([10, 200, 300, 500]) for _ in requests]
        self.w.slots["request"] = np.arange(NUM_SESSIONS)
        self.w.clock["num_free_slots"] = 0
        self.verifiers = self.w.verifiers.view(np.recarray)

    @property
    def is_over(self) -> bool:
        return len(self.slots) == NUM_SESSIONS and all(slot.state.finish for slot in self.slots)

    def open(self) -> None:
        number = len(self.slots)
        if number < NUM_SESSIONS:
            request = self.w.requests[number]
            prompt = [1 + (number + i) % 90 for i in range(request["prompt"])]
            self.slots.append(self.table.opens(number, int(request["max_tokens"]), prompt))
            cloud.opens(self.w, number)

    def draft(self) -> None:
        """Right guesses for a session, behind those that it has."""
        alive = [slot for slot in self.slots if slot.state.finish is None]
        if not alive:
            return
        slot = self.rng.choice(alive)
        state, request = slot.state, slot.state.request
        base, epoch = max(state.length, state.guesses.end), state.guesses.epoch
        text = answer(request.prompt_ids, request.max_tokens)
        guesses = text[base - len(request.prompt_ids) :][: self.rng.randrange(1, 40)]
        state.on_draft(Draft(state.session_id, 1, epoch, base, TokenIds(guesses), True, 0.0), 0.0)
        m, told = (np.zeros(1, records.MESSAGE).view(np.recarray)[0] for _ in range(2))
        m.epoch, m.base, m.num, m.wrong, m.free_run = epoch, base, len(guesses), records.NEVER, True
        verify_session.on_draft(self.verifiers[number_of(slot)], m, told, 0.0)

    def end_pass(self) -> None:
        if self.batch:
            self.table.end_pass(self.batch)
            self.batch = []
            self.w.clock["now"] = self.w.nodes["ends_at"]
            self.table.now = float(self.w.nodes["ends_at"][0])
            cloud.pass_ends(self.w, 0)

    def begin_pass(self) -> None:
        """The simulated verifier has begun its own where it could."""
        self.w.clock["num_events"] = 0
        if not self.batch:
            self.batch = self.table.begin_pass()
            begun = self.w.batches[0, : self.w.nodes[0]["num_batch"]].tolist()
            assert begun == [number_of(share.slot) for share in self.batch]
            assert [self.verifiers[i].row_fed for i in begun] == [len(share.row.fed_ids) for share in self.batch]

    def check(self) -> None:
        for slot in self.slots:
            v, reserved = self.verifiers[number_of(slot)], self.w.slots[number_of(slot)]["reserved"]
            assert reserved == (slot.context.capacity if slot.context else 0)
            assert v.length == slot.state.length
            assert slot.state.finish or v.computed == slot.state.computed
        node, table = self.w.nodes[0], self.table
        assert node["free_kv"] == table.engine.free_kv_tokens
        assert node["num_preemptions"] == table.num_preemptions
        assert kv_cache.free_for_another(self.w, 0) == table.free_kv_tokens


def test_a_simulated_verifier_gives_and_takes_kv_cache_as_the_session_table_does() -> None:
    num_preemptions = 0
    for seed in range(10):
        both = BothVerifiers(random.Random(seed))
        while not both.is_over:
            act = both.rng.choice([both.open, both.draft, both.draft, *[both.end_pass] * 6])
            act()
            both.begin_pass()
            both.check()
        num_preemptions += both.table.num_preemptions
    assert num_preemptions > 10


def long_answers(num: int, num_nodes: int = 1, tokens: int = FIRST + 10) -> World:
    """Requests at the same time whose answers outgrow their first reservation."""
    world = a_world(num, num_nodes=num_nodes, tokens=tokens)
    world.nodes["kv_tokens"] = world.nodes["free_kv"] = 2 * FIRST
    return world


def assert_served(world: World) -> None:
    requests = world.requests
    fates = sum(requests[name] for name in ("accepted", "rejected", "late", "discarded"))
    assert (fates == requests["drafted"]).all()
    assert world.nodes["num_committed"].sum() == requests["tokens"].sum()
    assert (world.nodes["free_kv"] == world.nodes["kv_tokens"]).all()


def test_requests_with_a_high_limit_do_not_fill_a_verifier() -> None:
    world = a_world(40, tokens=50)
    world.requests["max_tokens"], world.requests["device"] = 8000, -1
    world.nodes["kv_tokens"] = world.nodes["free_kv"] = 32768
    a_fleet(world).run()
    assert world.requests["first_ms"].max() == 40.0, "all others begin with the second pass"
    assert world.nodes["num_preemptions"].sum() == 0


def test_preempted_sessions_go_on_when_older_ones_have_ended() -> None:
    world = long_answers(6)
    a_fleet(world).run()
    assert_served(world)
    assert world.nodes["num_preemptions"].sum() > 0
    assert np.argmin(world.requests["done_ms"]) == 0, "the oldest is never held up"


def test_a_preempted_session_moves_to_another_verifier_that_has_room_for_its_text() -> None:
    """The second verifier has one session, which soon ends, and then room for one that the first one preempts."""
    world = long_answers(3, num_nodes=2, tokens=600)
    world.requests["tokens"][1] = 20
    fleet = a_fleet(world, router="round-robin")
    fleet.run()
    assert_served(world)
    assert world.nodes["num_preemptions"].tolist() == [1, 0]
    assert world.requests["node"].tolist() == [0, 1, 1]
    num_committed = world.nodes["num_committed"]
    assert 20 < num_committed[1] < 20 + 600 - FIRST + 64, "the session goes on behind the tokens that it has"
    assert (world.requests["passes"] > 0).all()
