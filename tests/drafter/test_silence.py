"""What a drafter does while its verifier says no, or nothing."""

from __future__ import annotations

import time

import pytest

from awc.policy import DEFAULT_CHOICE
from shared.protocol import drafter_session
from shared.protocol.messages import Draft, Failure
from tests.drafter.conftest import PROMPT, TEXT, World
from tests.fakes import answer
from tests.peers import until

pytestmark = pytest.mark.timeout(60)

WINDOW = DEFAULT_CHOICE.window


def now_ms() -> float:
    return time.monotonic() * 1e3


async def test_an_unknown_session_is_waited_out_since_the_verifier_may_be_opening_it(world: World) -> None:
    request = await world.speculate()
    failure = Failure(request.session_id, 1, "unknown_session", "not yet", True)
    for _ in range(3):
        await world.tell(world.verifier, failure)
    assert await world.drafted(request, 0, WINDOW) == TEXT[:WINDOW]
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:4], accepted=4))
    assert await world.drafted(request, WINDOW, 4) == TEXT[WINDOW : WINDOW + 4]


async def test_a_session_that_its_verifier_has_lost_ends_at_once_and_the_gateway_is_told(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:4], accepted=4))
    await world.tell(world.verifier, Failure(request.session_id, 1, "unknown_session", "lost", True))
    told = await world.gateway.next(Failure)
    assert (told.session_id, told.retryable) == (request.session_id, True)
    assert len(world.drafter.table) == 0


async def test_a_closed_session_ends_at_once(world: World) -> None:
    request = await world.speculate()
    await world.drafted(request, 0, WINDOW)
    await world.tell(world.verifier, Failure(request.session_id, 1, "closed", "over", False))
    await world.settled()
    assert len(world.drafter.table) == 0
    assert world.fates()["discarded"] == WINDOW


async def test_failures_of_other_verifiers_or_terms_end_nothing(world: World) -> None:
    stranger = await world.meet("verifier", "stranger")
    request = await world.speculate()
    await world.tell(stranger, Failure(request.session_id, 1, "closed", "over", False))
    await world.tell(world.verifier, Failure(request.session_id, 0, "closed", "over", False))
    await world.tell(world.verifier, Failure("ab" * 16, 1, "closed", "over", False))
    await world.settled()
    assert world.dropped("stale failure") == 3
    assert len(world.drafter.table) == 1


async def test_silence_is_answered_by_sending_everything_unverified_again(world: World) -> None:
    request = await world.quick_link()
    await world.drafted(request, 0, WINDOW)
    again = await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
    assert (again.base, again.token_ids) == (len(PROMPT), tuple(TEXT[:WINDOW]))
    await world.tell(world.verifier, world.verdict(request, 0, TEXT[:5], accepted=5))
    assert await world.drafted(request, WINDOW, 5) == TEXT[WINDOW : WINDOW + 5]


async def test_a_lost_draft_of_a_session_that_waits_for_its_verdict_is_sent_again(world: World) -> None:
    await world.decide(4, chunk=4, free_run=False)
    request = await world.quick_link()
    await world.drafted(request, 0, 4)
    again = await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == 4)
    assert again.token_ids == tuple(TEXT[:4])


async def test_a_short_patience_is_not_kept_waiting_by_an_older_long_one(world: World) -> None:
    request = await world.quick_link()
    await world.drafted(request, 0, WINDOW)

    async def pause() -> float:
        asked = now_ms()
        await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
        return now_ms() - asked

    pauses = [await pause() for _ in range(6)]  # each about twice the one before
    await world.tell(world.verifier, world.verdict(request, 0, ()))
    assert await pause() < pauses[-1] / 2


async def test_a_verifier_that_stays_silent_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_session, "MAX_SILENT_TRIES", 3)
    request = await world.quick_link()
    await world.drafted(request, 0, WINDOW)
    for _ in range(3):
        await world.verifier.next(Draft, lambda draft: len(draft.token_ids) == WINDOW)
    await until(lambda: not len(world.drafter.table))
    assert world.fates()["discarded"] == WINDOW
    failure = await world.gateway.find(Failure)
    assert (failure.session_id, failure.term, failure.code, failure.retryable) == (
        request.session_id,
        1,
        "internal",
        True,
    )
    later = await world.speculate(prompt=(9,))
    assert await world.drafted(later, 0, WINDOW) == answer((9,), WINDOW)
