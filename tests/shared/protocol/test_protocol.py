"""Property tests of the protocol: both state machines against each other under faults (docs/protocol.md)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Open, Sampling, Speculate, Speculation, TokenIds
from shared.protocol.pass_row import PassInfo
from shared.protocol.retelling import MAX_RETOLD
from shared.protocol.verifier_session import VerifierSession
from tests.shared.protocol.protocol_world import PROMPT, SESSION, STOP, Faults, World, target_text

worlds = st.builds(
    World,
    seed=st.integers(0, 2**31),
    max_tokens=st.integers(1, 60),
    window=st.integers(1, 16),
    chunk=st.integers(1, 16),
    free_run=st.booleans(),
    accuracy=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    min_confidence=st.sampled_from([0.0, 0.0, 0.3, 0.7, 1.0]),
    faults=st.builds(
        Faults,
        loss=st.sampled_from([0.0, 0.05, 0.3]),
        duplicate=st.sampled_from([0.0, 0.3]),
        delay_ms=st.sampled_from([0.1, 5.0, 60.0]),
        jitter_ms=st.sampled_from([0.0, 40.0, 300.0]),
    ),
    pass_ms=st.sampled_from([1.0, 20.0, 90.0]),
    step_ms=st.sampled_from([1.0, 5.0, 40.0]),
    prefill_chunk=st.integers(1, 8),
    forcing=st.sampled_from([0.0, 0.5]),
    max_looked_up=st.sampled_from([0, 3, 16]),
)


def finish(world: World) -> None:
    world.run(stop=lambda: world.finish is not None)
    assert world.finish is not None, "the session never ended"
    assert world.received == target_text(world.seed, world.max_tokens)
    for session in [*world.drafter_sessions.values(), *world.retired]:
        assert session.drafted == session.fates.total + session.num_guesses
    world.faults = Faults()
    world.run(until=world.now + 100_000)
    for session in world.drafter_sessions.values():
        assert session.closed, "a drafter never learnt that its session ended"
        assert session.drafted == session.fates.total


@settings(max_examples=300, deadline=None, derandomize=True)
@given(world=worlds)
def test_whatever_the_bus_does_the_text_is_the_targets_own_and_every_session_ends(world: World) -> None:
    world.start()
    finish(world)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(world=worlds, data=st.data())
def test_drafters_and_verifiers_may_be_replaced_at_any_moment(world: World, data: st.DataObject) -> None:
    world.start()
    for number in range(1, 1 + data.draw(st.integers(1, 4))):
        world.run(until=world.now + data.draw(st.sampled_from([1.0, 33.0, 150.0, 400.0])))
        kind = data.draw(st.sampled_from(["drafter", "no drafter", "verifier", "move and return"]))
        if kind == "verifier":
            world.kill_verifier(f"v.{number}")
        elif kind == "move and return" and not world.finish:
            world.bind(verifier_id="v.0" if world.verifier_id != "v.0" else "v.9")
        else:
            world.kill_drafter(None if kind == "no drafter" else f"d.{number}")
    finish(world)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), free_run=st.booleans())
def test_a_drafter_that_joins_late_makes_the_session_faster(seed: int, free_run: bool) -> None:
    world = World(seed, max_tokens=60, accuracy=1.0, free_run=free_run)
    world.drafter_id = None
    world.start()
    world.run(until=300.0)
    if world.finish:
        return
    world.kill_drafter("d.1")
    finish(world)
    joined = world.drafter_sessions.get("d.1")
    assert joined is not None
    if len(world.received) > 35:
        assert joined.fates.accepted > 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("free_run", [True, False])
def test_speculation_comes_back_after_an_outage(seed: int, free_run: bool) -> None:
    world = World(seed, max_tokens=400, accuracy=0.9, free_run=free_run)
    text = target_text(seed, 400)
    world.start()
    world.run(until=150.0, stop=lambda: world.finish is not None)
    world.cut = True
    world.run(until=world.now + 300.0)
    world.cut = False
    if len(text) < 150:
        finish(world)
        return
    world.run(until=world.now + 1500.0, stop=lambda: world.finish is not None)
    before = world.drafter_sessions["d.0"].fates.accepted
    world.run(until=world.now + 1500.0, stop=lambda: world.finish is not None)
    assert world.finish or world.drafter_sessions["d.0"].fates.accepted > before
    finish(world)


@pytest.mark.parametrize("seed", range(10))
def test_speculation_comes_back_after_a_verdict_and_the_poll_for_it_are_lost(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = next(s for s in range(1000 * seed, 10**6) if len(target_text(s, 400)) > 150)
    world = World(long, max_tokens=400, accuracy=0.9)
    world.start()
    world.run(until=200.0)
    drafter, hear, tell = world.drafter_sessions["d.0"], world.on_verdict_at_drafter, world.deliver
    with monkeypatch.context() as losses:  # while the window fills; verdicts above the committed length arrive
        losses.setattr(
            world, "on_verdict_at_drafter", lambda to, verdict: verdict.base > drafter.committed and hear(to, verdict)
        )
        losses.setattr(world, "deliver", lambda sender, draft: draft.token_ids and tell(sender, draft))
        world.run(until=world.now + 60.0)
    assert not drafter.wants_step
    before = drafter.fates.accepted
    world.run(until=world.now + 300.0)
    assert drafter.fates.accepted > before
    finish(world)


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_drafter_far_behind_catches_up_in_a_few_polls(is_finished: bool) -> None:
    num, rtt_ms = 3000, 30.0
    max_tokens = num if is_finished else 2 * num
    stops, drafter_id = TokenIds((STOP,)), "d.0"
    order = Open(SESSION, 1, drafter_id, PROMPT, TokenIds([3] * num), Sampling(), stops, max_tokens)
    request = Speculate(SESSION, 1, "v.0", PROMPT, TokenIds(), Sampling(), stops, max_tokens, Speculation())
    verifier = VerifierSession.opened(order, "g.0", 0.0)
    drafter = DrafterSession.started(request, window=0, chunk=1, free_run=True, now=0.0)
    now, num_polls = 0.0, 0
    while drafter.committed < verifier.length and num_polls < 20:
        now = now + rtt_ms if not is_finished else max(now + rtt_ms, drafter.resend_at or 0.0)
        if verifier.ready:
            row = verifier.begin_pass(max_tokens, 0)
            drafter.on_verdict(verifier.end_pass(row, [3], PassInfo(), now), now)  # type: ignore[arg-type]
        poll = drafter.take_draft(now) or drafter.on_timer(now)
        answer = verifier.on_draft(poll, now) if poll else None
        num_polls += 1
        if answer:
            drafter.on_verdict(answer, now)
    assert drafter.committed == verifier.length
    assert drafter.closed == is_finished
    assert num_polls <= num / MAX_RETOLD + 2


def test_a_perfect_drafter_on_a_perfect_bus_has_nearly_all_its_guesses_accepted() -> None:
    seed = next(s for s in range(1000) if len(target_text(s, 60)) == 60)
    world = World(seed, max_tokens=60, accuracy=1.0, free_run=False, faults=Faults(delay_ms=1.0))
    world.start()
    finish(world)
    fates = world.drafter_sessions["d.0"].fates
    assert fates.accepted >= 50
    assert fates.rejected == 0


@pytest.mark.parametrize("min_confidence", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("free_run", [True, False])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_no_session_waits_for_ever_at_a_window_that_ended_early(
    min_confidence: float, free_run: bool, loss: float
) -> None:
    num_unsure = 0
    for seed in range(10):
        world = World(seed, chunk=8, free_run=free_run, min_confidence=min_confidence, faults=Faults(loss=loss))
        world.start()
        finish(world)
        num_unsure += world.num_unsure
    assert num_unsure > 10


@pytest.mark.parametrize("min_confidence", [0.3, 0.8, 1.0])
def test_without_free_run_a_window_that_ended_early_is_answered_long_before_the_drafters_lease(
    min_confidence: float,
) -> None:
    for seed in range(10):
        world = World(seed, chunk=8, free_run=False, min_confidence=min_confidence, drafter_lease_ms=1e9)
        world.start()
        world.run(stop=lambda world=world: world.finish is not None)
        slowest = 2 * world.faults.delay_ms + world.pass_ms + 2 * world.step_ms  # a window of one guess
        assert world.now < 200 + slowest * len(world.received)
        finish(world)


def test_the_sooner_windows_end_the_fewer_guesses_are_discarded() -> None:
    seed = next(s for s in range(1000) if len(target_text(s, 60)) == 60)
    discarded = []
    for min_confidence in (0.0, 0.5, 1.0):
        world = World(seed, 60, chunk=8, free_run=False, min_confidence=min_confidence, accuracy=0.5)
        world.start()
        finish(world)
        fates = world.drafter_sessions["d.0"].fates
        discarded.append(fates.discarded)
    assert discarded[0] > 2 * discarded[1] > 0
    assert discarded[2] == 0
