"""What nobody should send to a drafter: counted, answered or dropped, while its sessions go on undisturbed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgpack
import pytest

from shared.protocol import subjects
from shared.protocol.messages import (
    MAX_TOKENS,
    Close,
    Echo,
    Failure,
    Heartbeat,
    Load,
    Poll,
    Speculate,
    TokenIds,
    Verdict,
    WindowDecision,
    encode,
)
from tests.drafter.conftest import PROMPT, TEXT, World, running
from tests.fakes import answer, wrong
from tests.peers import until
from tests.plugins.networks import OverNats

pytestmark = pytest.mark.timeout(60)

SESSION = "ab" * 16
OTHER_PROMPT = (30, 31)
OTHER_TEXT = answer(OTHER_PROMPT, 40)
WINDOW = 8


@dataclass
class Siege:
    """A drafter with one session that is attacked and another that must not notice; both have sent their window."""

    world: World
    attacked: Speculate
    other: Speculate

    async def inject(self, packet: bytes, verb: str = "verdict", sender: str = "") -> None:
        drafter_id, sender = self.world.drafter.instance_id, sender or self.world.verifier.instance_id
        await self.world.network.inject(subjects.with_verb("drafter", drafter_id, verb, sender), packet)

    async def goes_on(self, request: Speculate, text: list[int]) -> None:
        await self.world.tell(self.world.verifier, self.world.verdict(request, 0, text[:4], accepted=4))
        assert await self.world.drafted(request, WINDOW, 4) == text[WINDOW : WINDOW + 4]


@pytest.fixture
async def siege(world: World) -> AsyncIterator[Siege]:
    siege = await besieged(world)
    yield siege
    await siege.goes_on(siege.other, OTHER_TEXT)
    later = await world.speculate(prompt=(40,))
    assert await world.drafted(later, 0, WINDOW) == answer((40,), WINDOW)


async def besieged(world: World) -> Siege:
    attacked, other = await world.speculate(), await world.speculate(prompt=OTHER_PROMPT)
    await world.drafted(attacked, 0, WINDOW)
    await world.drafted(other, 0, WINDOW)
    return Siege(world, attacked, other)


def changed(verdict: Verdict, **changes: object) -> Verdict:
    return Verdict(**{name: getattr(verdict, name) for name in verdict.__struct_fields__} | changes)


GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "a broken part": b"\xc1" + b"\x00" * 40,
    "an unknown tag": msgpack.packb(["sentence", SESSION]),
    "a verdict without fields": msgpack.packb(["verdict"]),
    "a window larger than the largest": msgpack.packb(
        ["window", "edge.0123456789ab", "cloud.0123456789ab", 65, 2, True, "test", 1]
    ),
    "a chunk of zero": msgpack.packb(["window", "edge.0123456789ab", "cloud.0123456789ab", 8, 0, True, "test", 1]),
    "more ids than any text has": msgpack.packb(
        ["verdict", SESSION, 1, 0, 0, b"\x01\x00\x00\x00" * (MAX_TOKENS + 1), 0, None, None, 1.0, 1, 0.0, [0] * 5]
    )[:60_000],
}


@pytest.mark.parametrize("packet", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_message_is_counted_and_dropped(siege: Siege, packet: bytes) -> None:
    await siege.inject(packet)
    await siege.world.settled()
    assert siege.world.count("bus_dropped_messages", reason="malformed") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_message_that_is_not_for_a_drafter_is_dropped(siege: Siege) -> None:
    await siege.world.tell(siege.world.gateway, Poll(siege.attacked.session_id, 1, 0))
    await siege.world.settled()
    assert siege.world.dropped("not for a drafter") == 1
    await siege.goes_on(siege.attacked, TEXT)


@pytest.mark.parametrize("verb", ["verdict", "absent", "close"])
async def test_a_message_under_another_verb_is_dropped_since_permissions_are_given_by_verb(
    siege: Siege, verb: str
) -> None:
    decision = WindowDecision(
        siege.world.drafter.instance_id, siege.world.verifier.instance_id, 2, 2, True, "test", 1 << 40
    )
    await siege.inject(encode(decision), verb, siege.world.controller.instance_id)
    await siege.world.settled()
    assert siege.world.dropped("wrong verb") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_verdict_on_an_unknown_session_is_dropped(siege: Siege) -> None:
    await siege.world.tell(
        siege.world.verifier, changed(siege.world.verdict(siege.attacked, 0, TEXT[:2]), session_id=SESSION)
    )
    await siege.world.settled()
    assert siege.world.dropped("unknown session") == 1


@pytest.mark.parametrize("term", [0, 2])
async def test_a_verdict_of_another_term_is_dropped(siege: Siege, term: int) -> None:
    lie = changed(siege.world.verdict(siege.attacked, 0, [wrong(TEXT[0])]), term=term)
    await siege.world.tell(siege.world.verifier, lie)
    await siege.world.settled()
    assert siege.world.dropped("stale term") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_verdict_of_a_verifier_that_the_gateway_did_not_name_is_dropped(siege: Siege) -> None:
    stranger = await siege.world.meet("verifier", "stranger")
    await siege.world.tell(stranger, siege.world.verdict(siege.attacked, 0, [wrong(TEXT[0])]))
    await siege.world.settled()
    assert siege.world.dropped("foreign verifier") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_repeated_verdict_is_counted_once(siege: Siege) -> None:
    for _ in range(3):
        await siege.world.tell(siege.world.verifier, siege.world.verdict(siege.attacked, 0, TEXT[:2], accepted=2))
    await siege.world.settled()
    assert siege.world.fates()["accepted"] == 2
    await siege.goes_on(siege.attacked, TEXT)


@pytest.mark.parametrize(
    ("base", "ids"),
    [(-len(PROMPT), [9]), (-1, [*TEXT[:1], 9]), (0, [wrong(TEXT[0]), *TEXT[1:6]]), (1, [wrong(TEXT[1])])],
)
async def test_a_verifier_that_takes_back_what_it_has_fixed_is_followed_no_further(
    siege: Siege, base: int, ids: list[int]
) -> None:
    world = siege.world
    await world.tell(world.verifier, world.verdict(siege.attacked, 0, TEXT[:3], accepted=3))
    await world.tell(world.verifier, world.verdict(siege.attacked, base, ids))
    await world.settled()
    assert world.drafter.table.get(siege.attacked.session_id) is None
    assert world.count("bus_dropped_messages", reason="handler failed") == 0
    assert world.fates()["accepted"] == 3


async def test_a_verdict_with_tokens_outside_the_vocabulary_costs_its_session_only(siege: Siege) -> None:
    await siege.world.tell(siege.world.verifier, siege.world.verdict(siege.attacked, 0, [4294967295]))
    await siege.goes_on(siege.other, OTHER_TEXT)
    table = siege.world.drafter.table  # a step with the token fails, which may be after the other session's
    await until(lambda: table.get(siege.attacked.session_id) is None)


async def test_a_verdict_beyond_the_end_of_the_answer_ends_nothing(siege: Siege) -> None:
    await siege.world.tell(siege.world.verifier, siege.world.verdict(siege.attacked, 0, [7] * 5000, accepted=5000))
    await siege.world.settled()
    await siege.world.tell(siege.world.gateway, Close(siege.attacked.session_id, 1))


@pytest.mark.parametrize("echo", [Echo(0.0, 0.0), Echo(1e15, 0.0), Echo(0.0, 1e15)])
async def test_an_absurd_echo_disturbs_nobody_else(siege: Siege, echo: Echo) -> None:
    lie = changed(siege.world.verdict(siege.attacked, 0, TEXT[:1]), echo=echo, epoch=1 << 48, compute_ms=1e15)
    await siege.world.tell(siege.world.verifier, lie)
    await siege.world.settled()


async def test_another_gateway_can_neither_close_nor_rebind_a_session(siege: Siege) -> None:
    thief = await siege.world.meet("gateway", "thief")
    await siege.world.tell(thief, Close(siege.attacked.session_id, 9))
    await siege.world.speculate(session_id=siege.attacked.session_id, term=9, sender=thief)
    failure = await thief.find(Failure)
    assert (failure.code, failure.retryable) == ("unknown_session", False)
    assert siege.world.dropped("stale term or foreign gateway") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_closing_an_older_term_changes_nothing(siege: Siege) -> None:
    await siege.world.tell(siege.world.gateway, Close(siege.attacked.session_id, 0))
    await siege.world.tell(siege.world.gateway, Close(SESSION, 5))
    await siege.world.settled()
    assert siege.world.dropped("stale term or foreign gateway") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_chunk_that_the_window_can_not_hold_is_no_decision(siege: Siege) -> None:
    await siege.world.decide(2, chunk=5)
    await siege.world.settled()
    assert siege.world.dropped("decision not followed") == 1
    await siege.goes_on(siege.attacked, TEXT)


async def test_a_heartbeat_in_another_name_is_counted_and_dropped(siege: Siege) -> None:
    world = siege.world
    lie = Heartbeat("controller", world.controller.instance_id, 5.0, [], 0, 0, "", Load(), True)
    await world.network.inject(subjects.broadcast(Heartbeat, "controller", world.verifier.instance_id), encode(lie))
    await world.network.inject(subjects.broadcast(Heartbeat, "controller", world.controller.instance_id), b"\x00")
    await world.settled()
    assert world.dropped("foreign heartbeat") == 1
    assert world.count("bus_dropped_messages", reason="malformed") == 1


async def test_a_flood_of_decisions_by_changing_senders_is_bounded(siege: Siege) -> None:
    for number in range(300):
        decision = WindowDecision(
            siege.world.drafter.instance_id, f"cloud-{number}.{number:012x}", 4, 2, True, "test", number
        )
        await siege.world.tell(siege.world.controller, decision)
    await siege.world.settled()
    await siege.goes_on(siege.attacked, TEXT)


async def test_the_drafter_never_publishes_to_a_reply_subject_that_a_message_names(nats_network: OverNats) -> None:
    async with running(nats_network) as world:
        siege = await besieged(world)
        caught: list[bytes] = []
        trap = subjects.to("gateway", world.gateway.instance_id, Failure, "trap.0123456789ab")
        await nats_network.raw.subscribe(trap, cb=_catch_into(caught))
        refused = Speculate(
            SESSION, 1, world.verifier.instance_id, TokenIds(), TokenIds(), siege.attacked.sampling, TokenIds(), 5,
            siege.attacked.speculation,
        )  # fmt: skip
        subject = subjects.to("drafter", world.drafter.instance_id, Speculate, world.gateway.instance_id)
        await nats_network.inject(subject, encode(refused), trap)
        assert (await world.gateway.find(Failure)).session_id == SESSION
        await world.settled()
        await nats_network.inject(trap, b"bait")
        while not caught:
            await world.settled()
        assert caught == [b"bait"]
        await siege.goes_on(siege.attacked, TEXT)


def _catch_into(caught: list[bytes]):
    async def catch(message) -> None:
        caught.append(message.data)

    return catch
