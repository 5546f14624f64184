"""Invalid input is counted, then answered or dropped, and does not disturb other sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgpack
import pytest
from nats.aio.msg import Msg

from shared.protocol import subjects
from shared.protocol.messages import (
    MAX_WINDOW,
    Close,
    Draft,
    Failure,
    Open,
    Poll,
    Speculate,
    Speculation,
    TokenIds,
    Verdict,
    encode,
)
from tests.fakes import answer, wrong
from tests.plugins.networks import OverNats
from tests.verifier.conftest import PROMPT, World, running

pytestmark = pytest.mark.timeout(60)

TEXT = answer(PROMPT, 12)
OTHER_PROMPT = (30, 31)


@dataclass
class Siege:
    """A verifier with one attacked session and one that must not be disturbed."""

    world: World
    attacked: Open
    other: Open

    async def inject(self, packet: bytes, verb: str = "draft", sender: str = "") -> None:
        verifier_id, sender = self.world.verifier.instance_id, sender or self.world.drafter.instance_id
        await self.world.network.inject(subjects.with_verb("verifier", verifier_id, verb, sender), packet)

    def draft(self, **changes: object) -> Draft:
        """A good draft for the attacked session, except for `changes`."""
        good = Draft(self.attacked.session_id, 1, 0, len(PROMPT) + 2, TokenIds(TEXT[2:4]), True, 1.0)
        fields = {name: getattr(good, name) for name in good.__struct_fields__}
        return Draft(**fields | changes)

    async def both_texts_are_right(self) -> None:
        """The verifier still serves another session."""
        self.world.model.gate.open()
        assert await self.world.text(self.attacked) == TEXT
        assert await self.world.text(self.other) == answer(OTHER_PROMPT, 12)
        later = await self.world.open(prompt=(40,))
        assert await self.world.text(later) == answer((40,), 12)


async def besieged(world: World) -> Siege:
    """Both sessions have two committed tokens; the third pass is held."""
    world.model.gate.shut()
    attacked = await world.open()
    await world.model.gate.held()
    other = await world.open(prompt=OTHER_PROMPT)
    world.model.gate.let(2)
    await world.gateway.find(Verdict, lambda verdict: TEXT[1] in verdict.token_ids)
    await world.model.gate.held()
    return Siege(world, attacked, other)


@pytest.fixture
async def siege(world: World) -> AsyncIterator[Siege]:
    siege = await besieged(world)
    yield siege
    await siege.both_texts_are_right()


def packed(*fields: object) -> bytes:
    return msgpack.packb(list(fields))


SESSION = "ab" * 16
GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "a number": b"\x07",
    "a broken part": b"\xc1" + b"\x00" * 40,
    "a part of too many": b"\xc1" + (1).to_bytes(8, "little") + b"\x00\x00\xff\xff" + b"x",
    "a truncated draft": encode(Draft(SESSION, 1, 0, 3, TokenIds((1,)), True, 1.0))[:-3],
    "an unknown tag": packed("drift", SESSION, 1),
    "no fields": packed("draft"),
    "a field too many": packed("draft", SESSION, 1, 0, 3, b"\x01\x00\x00\x00", True, 1.0, 9),
    "a number as session": packed("draft", 7, 1, 0, 3, b"\x01\x00\x00\x00", True, 1.0),
    "a list of ids": packed("draft", SESSION, 1, 0, 3, [1, 2], True, 1.0),
    "half an id": packed("draft", SESSION, 1, 0, 3, b"\x01\x00\x00", True, 1.0),
    "a negative base": packed("draft", SESSION, 1, 0, -3, b"\x01\x00\x00\x00", True, 1.0),
    "a huge epoch": packed("draft", SESSION, 1, 1 << 60, 3, b"\x01\x00\x00\x00", True, 1.0),
    "not a number as time": packed("draft", SESSION, 1, 0, 3, b"\x01\x00\x00\x00", True, float("nan")),
    "more than the largest window": packed(
        "draft", SESSION, 1, 0, 3, b"\x01\x00\x00\x00" * (MAX_WINDOW + 1), True, 1.0
    ),
    "deep nesting": b"\x91" * 100_000,
    "a giant length": b"\xdd\xff\xff\xff\xff",
    "an extension": b"\xc7\x01\x05\x00",
}


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_message_is_counted_and_dropped(siege: Siege, packet: bytes) -> None:
    await siege.inject(packet)
    await siege.world.settled()
    assert siege.world.count("bus_dropped_messages", reason="malformed") == 1
    assert siege.world.drafter.heard == [v for v in siege.world.drafter.of(Verdict) if v.token_ids]


async def test_the_largest_window_is_allowed(siege: Siege) -> None:
    await siege.inject(encode(siege.draft(token_ids=TokenIds([wrong(TEXT[2])] * MAX_WINDOW))))
    await siege.world.settled()
    assert siege.world.count("bus_dropped_messages", reason="malformed") == 0
    siege.world.model.gate.open()
    await siege.world.finish(siege.attacked)
    assert sum(siege.world.fates().values()) == MAX_WINDOW


async def test_a_message_that_is_not_for_a_verifier_is_dropped(siege: Siege) -> None:
    attacked = siege.attacked
    speculate = Speculate(
        attacked.session_id, 1, siege.world.verifier.instance_id, attacked.prompt_ids, attacked.committed_ids,
        attacked.sampling, attacked.stop_ids, 5, Speculation(),
    )  # fmt: skip
    await siege.world.send(siege.world.gateway, speculate)
    await siege.world.settled()
    assert siege.world.dropped("not for a verifier") == 1


@pytest.mark.parametrize("verb", ["draft", "close", "absent"])
async def test_a_message_under_another_verb_is_dropped_since_permissions_are_given_by_verb(
    siege: Siege, verb: str
) -> None:
    await siege.inject(encode(Open(**_fields(siege.attacked) | {"session_id": SESSION})), verb)
    await siege.world.settled()
    assert siege.world.dropped("wrong verb") == 1
    assert len(siege.world.verifier.table) == 2


@pytest.mark.parametrize("sender", ["edge", "edge.0123", "EDGE.0123456789ab", "edge.0123456789ab.x.y", "verifier.>"])
async def test_a_sender_that_is_no_instance_is_not_answered(siege: Siege, sender: str) -> None:
    before = len(siege.world.drafter.heard)
    await siege.inject(encode(siege.draft(session_id=SESSION)), sender=sender)
    await siege.world.settled()
    assert siege.world.dropped("wrong verb") == 1
    assert len(siege.world.drafter.heard) == before


async def test_a_draft_for_an_unknown_session_is_answered_with_a_failure_to_its_sender(siege: Siege) -> None:
    await siege.world.send(siege.world.stranger, siege.draft(session_id=SESSION, term=4))
    failure = await siege.world.stranger.find(Failure)
    assert (failure.session_id, failure.term, failure.code) == (SESSION, 4, "unknown_session")
    assert failure.retryable
    assert siege.world.dropped("unknown_session") == 1


async def test_a_drafter_that_the_gateway_did_not_name_is_ignored(siege: Siege) -> None:
    await siege.world.send(siege.world.stranger, siege.draft())
    await siege.world.settled()
    assert siege.world.dropped("foreign drafter") == 1
    siege.world.model.gate.open()
    await siege.world.finish(siege.attacked)
    assert siege.world.stranger.heard == []
    assert sum(siege.world.fates().values()) == 0


@pytest.mark.parametrize("term", [0, 2])
async def test_a_draft_of_another_term_is_dropped(siege: Siege, term: int) -> None:
    await siege.world.send(siege.world.drafter, siege.draft(term=term))
    await siege.world.settled()
    assert siege.world.dropped("stale term") == 1
    siege.world.model.gate.open()
    await siege.world.finish(siege.attacked)
    assert sum(siege.world.fates().values()) == 0


async def test_ids_outside_the_vocabulary_never_reach_the_model(siege: Siege) -> None:
    await siege.world.send(siege.world.drafter, siege.draft(token_ids=TokenIds((TEXT[2], 97))))
    await siege.world.send(siege.world.drafter, siege.draft(token_ids=TokenIds((4294967295,))))
    await siege.world.settled()
    assert siege.world.dropped("outside the vocabulary") == 2
    assert siege.world.count("verifier_failed_passes") == 0


async def test_a_draft_below_the_epoch_is_answered_and_changes_nothing(siege: Siege) -> None:
    world = siege.world
    await world.send(world.drafter, siege.draft(base=len(PROMPT) + 1, token_ids=TokenIds((wrong(TEXT[1]),))))
    await world.send(world.drafter, siege.draft())
    sent = await world.drafter.find(Verdict, lambda verdict: verdict.epoch == 1 and verdict.token_ids == ())
    assert sent.base == len(PROMPT) + 2
    world.model.gate.open()
    await world.finish(siege.attacked)
    assert world.fates() == {"accepted": 0, "rejected": 1, "late": 0, "discarded": 2}


async def test_a_gap_is_answered_with_where_the_text_ends(siege: Siege) -> None:
    await siege.world.send(siege.world.drafter, siege.draft(base=len(PROMPT) + 6))
    sent = await siege.world.drafter.find(Verdict, lambda verdict: verdict.token_ids == ())
    assert (sent.base, sent.epoch) == (len(PROMPT) + 2, 1)


@pytest.mark.parametrize("base", [0, 1 << 17])
async def test_a_base_far_outside_the_text_is_answered_from_inside_it(siege: Siege, base: int) -> None:
    await siege.world.send(siege.world.drafter, siege.draft(base=base))
    sent = await siege.world.drafter.find(Verdict, lambda verdict: verdict.echo is not None)
    assert len(PROMPT) <= sent.base <= len(PROMPT) + 2


async def test_a_repeated_draft_is_counted_once(siege: Siege) -> None:
    for _ in range(3):
        await siege.world.send(siege.world.drafter, siege.draft())
    await siege.world.settled()
    siege.world.model.gate.open()
    tally = (await siege.world.finish(siege.attacked)).tally
    assert (tally.late, tally.accepted, tally.rejected, tally.discarded) == (1, 1, 0, 0)


async def test_an_epoch_as_high_as_can_be_ends_nothing(siege: Siege) -> None:
    for _ in range(3):
        await siege.world.send(siege.world.drafter, siege.draft(epoch=1 << 48, token_ids=TokenIds((wrong(TEXT[2]),))))
    await siege.world.settled()


async def test_another_gateway_can_not_poll_close_or_rebind_a_session(siege: Siege) -> None:
    thief = await siege.world.meet("gateway", "thief")
    session_id = siege.attacked.session_id
    await siege.world.send(thief, Poll(session_id, 1, 0))
    await siege.world.send(thief, Close(session_id, 9))
    await siege.world.send(thief, Open(**_fields(siege.attacked) | {"term": 9, "drafter_id": None}))
    failure = await thief.find(Failure)
    assert (failure.code, failure.retryable) == ("unknown_session", False)
    assert siege.world.dropped("stale term or foreign gateway") == 2
    assert siege.world.dropped("unknown_session") == 1
    assert thief.of(Verdict) == []


async def test_polls_closings_and_openings_of_another_term_change_nothing(siege: Siege) -> None:
    session_id, gateway = siege.attacked.session_id, siege.world.gateway
    await siege.world.send(gateway, Poll(session_id, 2, 0))
    await siege.world.send(gateway, Close(session_id, 0))
    await siege.world.send(gateway, Open(**_fields(siege.attacked) | {"term": 0}))
    await siege.world.settled()
    assert siege.world.dropped("stale term or foreign gateway") == 2
    assert siege.world.dropped("stale term") == 1
    assert len(siege.world.verifier.table) == 2


async def test_closing_a_session_that_never_was_does_nothing(siege: Siege) -> None:
    await siege.world.send(siege.world.gateway, Close(SESSION, 1))
    await siege.world.settled()
    assert len(siege.world.verifier.table) == 2


async def test_a_flood_of_drafts_leaves_the_pending_guesses_bounded(siege: Siege) -> None:
    for number in range(200):
        base = len(PROMPT) + 2 + 32 * number
        await siege.world.send(siege.world.drafter, siege.draft(base=base, token_ids=TokenIds([7] * 32)))
    await siege.world.settled()
    state = siege.world.verifier.table.find(siege.attacked.session_id).state
    assert len(state.guesses.pending) <= MAX_WINDOW


async def test_the_verifier_never_publishes_to_a_reply_subject_that_a_message_names(nats_network: OverNats) -> None:
    async with running(nats_network) as world:
        siege = await besieged(world)
        trap = subjects.to("gateway", world.gateway.instance_id, Verdict, world.verifier.instance_id)
        caught: list[bytes] = []
        all_caught = asyncio.Event()

        async def catch(message: Msg) -> None:
            caught.append(message.data)
            if caught.count(b"bait") == len(named):
                all_caught.set()

        named = [f"{trap}.trap", "dsd.v1.drafter.trap.0123456789ab.absent.trap.0123456789ab", "_INBOX.trap"]
        for subject in named:
            await nats_network.raw.subscribe(subject, cb=catch)
        verifier_id, drafter_id = world.verifier.instance_id, world.drafter.instance_id
        said = {
            "draft": [siege.draft(), siege.draft(base=0), siege.draft(session_id=SESSION), siege.draft(term=3)],
            "poll": [Poll(siege.attacked.session_id, 1, 0)],
            "open": [siege.attacked],
        }
        for reply in named:
            for verb, messages in said.items():
                sender = drafter_id if verb == "draft" else world.gateway.instance_id
                for message in messages:
                    subject = subjects.with_verb("verifier", verifier_id, verb, sender)
                    await nats_network.inject(subject, encode(message), reply)
        await world.settled()
        assert world.drafter.of(Failure), "the drafts were answered where their sender listens"
        await siege.both_texts_are_right()
        for subject in named:
            await nats_network.inject(subject, b"bait")
        await asyncio.wait_for(all_caught.wait(), 10)
        assert caught == [b"bait"] * len(named)


async def test_a_forged_no_responders_status_is_counted_and_dropped(nats_network: OverNats) -> None:
    async with running(nats_network) as world:
        siege = await besieged(world)
        for verb in ("draft", "absent"):
            subject = subjects.with_verb("verifier", world.verifier.instance_id, verb, world.drafter.instance_id)
            await nats_network.raw.publish(subject, b"", headers={"Status": "503"})
        await nats_network.raw.flush()
        await world.settled()
        assert world.count("bus_dropped_messages", reason="malformed") == 1
        assert world.dropped("wrong verb") == 1
        await siege.both_texts_are_right()


def _fields(message: Open) -> dict[str, object]:
    return {name: getattr(message, name) for name in message.__struct_fields__}
