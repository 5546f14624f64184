"""A drafter that lies changes the speed of an answer within bounds, and nothing else (docs/protocol.md)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.protocol.guesses import Survival
from shared.protocol.verifier_session import EARNED_MS
from tests.shared.protocol.lying_world import LIES, TRUTHS, LyingWorld
from tests.shared.protocol.protocol_world import PROMPT


def worlds(*tricks: str) -> st.SearchStrategy[LyingWorld]:
    return st.builds(
        LyingWorld,
        seed=st.integers(0, 2**31),
        max_tokens=st.integers(1, 60),
        free_run=st.booleans(),
        every_ms=st.sampled_from([5.0, 20.0, 50.0]),
        drafter_lease_ms=st.sampled_from([100.0, 500.0]),
        pass_ms=st.sampled_from([1.0, 20.0, 90.0]),
        tricks=st.lists(st.sampled_from(tricks), min_size=1, unique=True).map(tuple),
    )


def finish(world: LyingWorld) -> None:
    world.start()
    world.run(until=300_000.0, stop=lambda: world.finish is not None)
    assert world.finish is not None, "the drafter holds up the answer"
    assert [*PROMPT, *world.received] == world.truth


@settings(max_examples=100, deadline=None, derandomize=True)
@given(world=worlds(*LIES, *TRUTHS))
def test_a_drafter_costs_one_lease_and_what_its_accepted_guesses_make_up_for(world: LyingWorld) -> None:
    finish(world)
    alone_ms = 500.0 + world.pass_ms * (len(PROMPT) + 1 + len(world.received))
    lease_ms = 1.25 * world.drafter_lease_ms  # it is checked four times in a lease
    accepted = sum(session.tally.accepted for session in world.verifier_sessions.values())
    assert world.now <= alone_ms + lease_ms + EARNED_MS * accepted


def test_a_wrong_guess_now_and_then_renews_no_lease() -> None:
    world = LyingWorld(
        seed=3, max_tokens=60, free_run=False, every_ms=90.0, drafter_lease_ms=100.0, pass_ms=1.0, tricks=LIES[2:3]
    )
    finish(world)
    assert len(world.received) == 60
    assert world.now < 1000.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(world=worlds(*LIES))
def test_whatever_a_drafter_tells_back_its_survival_never_rises(world: LyingWorld) -> None:
    finish(world)
    assert all(probability <= Survival().probability for probability in world.probabilities)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(world=worlds(*LIES, *TRUTHS))
def test_no_position_is_judged_for_ever(world: LyingWorld) -> None:
    """Twice at most: in a pass, and by a draft of a newer epoch that arrived during that pass."""
    finish(world)
    (session,) = world.verifier_sessions.values()
    fates = session.guesses.fates
    assert fates.accepted + fates.rejected + fates.late <= 2 * len(world.received)
    session.close()
    assert len(set(world.heard)) <= fates.total <= len(world.heard)
