"""What both buses promise, on a MemoryNetwork and on a real nats-server alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog
from prometheus_client import CollectorRegistry

from shared.bus import nats_bus
from shared.bus.bus import Absent, Bus, Receiver
from shared.bus.memory_bus import MemoryNetwork
from shared.bus.parts import MAX_WAITING, PART_BYTES, split
from shared.protocol import subjects
from shared.protocol.messages import MAX_TOKENS, Close, Heartbeat, Message, Poll
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.shared.bus.bus_helpers import (
    ABSENT_TO,
    DRAFTER,
    DRAFTS,
    GATEWAY_INBOX,
    INBOX,
    OPENED,
    OPENS,
    SESSION,
    VERIFIER,
    Heard,
    Member,
    draft,
    prompt,
)

pytestmark = pytest.mark.timeout(60)


Connect = Callable[[], Awaitable[Member]]


@pytest.fixture(params=["memory", "nats"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """connect() makes another member of one network."""
    members: list[Member] = []
    network = MemoryNetwork()
    url = request.getfixturevalue("nats_server").url if request.param == "nats" else ""

    async def join() -> Member:
        registry = CollectorRegistry()
        metrics = BusMetrics(registry)
        bus: Bus = network.connect(metrics)
        if url:
            bus = await nats_bus.connect(ServiceSettings(nats_url=url), subjects.new_instance_id("test"), metrics)
        members.append(Member(bus, registry))
        return members[-1]

    yield join
    for member in members:
        await member.bus.close()


async def test_a_message_arrives_with_its_subject(connect: Connect) -> None:
    drafter, verifier, heard = await connect(), await connect(), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    await drafter.bus.publish(DRAFTS, draft(3))
    await heard.wait_for(1)
    assert heard.all == [(DRAFTS, draft(3))]
    assert drafter.count("published_messages", message="Draft") == 1
    assert verifier.count("received_messages", message="Draft") == 1


async def test_messages_keep_their_order_across_verbs(connect: Connect) -> None:
    sender, verifier, heard = await connect(), await connect(), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    sent: list[Message] = []
    for base in range(100):
        sent += [draft(base), Poll(SESSION, 1, base)]
        await sender.bus.publish(DRAFTS, sent[-2])
        await sender.bus.publish(OPENS, sent[-1])
    assert await heard.wait_for(200) == sent


async def test_everybody_who_subscribed_a_pattern_hears_it_and_nobody_else(connect: Connect) -> None:
    sender, first, second, other = [await connect() for _ in range(4)]
    heard, heard_too, not_heard = Heard(), Heard(), Heard()
    await first.bus.subscribe(subjects.all_broadcasts(Heartbeat, "verifier"), heard)
    await second.bus.subscribe(subjects.all_broadcasts(Heartbeat, "verifier"), heard_too)
    await other.bus.subscribe(subjects.all_broadcasts(Heartbeat, "drafter"), not_heard)
    await sender.bus.publish(subjects.broadcast(Heartbeat, "verifier", DRAFTER), draft(1))
    await sender.bus.publish(subjects.broadcast(Heartbeat, "drafter", DRAFTER), draft(2))
    assert await heard.wait_for(1) == [draft(1)]
    assert await heard_too.wait_for(1) == [draft(1)]
    assert await not_heard.wait_for(1) == [draft(2)]


async def test_a_member_hears_what_it_says_itself(connect: Connect) -> None:
    member, heard = await connect(), Heard()
    await member.bus.subscribe(INBOX, heard)
    await member.bus.publish(DRAFTS, draft(1))
    assert await heard.wait_for(1) == [draft(1)]


@pytest.mark.parametrize("num_tokens", [1, PART_BYTES // 4, PART_BYTES // 4 + 1, 3 * PART_BYTES // 4, MAX_TOKENS])
async def test_a_long_prompt_arrives_whole_and_in_its_turn(connect: Connect, num_tokens: int) -> None:
    gateway, verifier, heard = await connect(), await connect(), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    await gateway.bus.publish(OPENS, prompt(num_tokens))
    await gateway.bus.publish(OPENS, Close(SESSION, 1))
    assert await heard.wait_for(2) == [prompt(num_tokens), Close(SESSION, 1)]


async def test_a_message_that_is_too_large_is_refused_by_name(connect: Connect) -> None:
    gateway = await connect()
    with pytest.raises(ValueError, match="at most 1048576"):
        await gateway.bus.publish(OPENS, prompt(1 << 18))


async def test_who_publishes_to_nobody_is_told(connect: Connect) -> None:
    gateway, heard = await connect(), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    await gateway.bus.publish(OPENS, Close(SESSION, 1), absent_to=ABSENT_TO)
    assert await heard.wait_for(1) == [Absent()]
    assert heard.all == [(ABSENT_TO, Absent())]
    assert subjects.sender(heard.all[0][0]) == VERIFIER
    assert gateway.count("received_messages", message="Absent") == 1


async def test_a_long_prompt_to_nobody_is_told_once(connect: Connect) -> None:
    gateway, heard = await connect(), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    await gateway.bus.publish(OPENS, prompt(MAX_TOKENS), absent_to=ABSENT_TO)
    await gateway.bus.publish(OPENED, Close(SESSION, 1))
    assert await heard.wait_for(2) == [Absent(), Close(SESSION, 1)]


async def test_who_publishes_to_somebody_hears_nothing_of_absence(connect: Connect) -> None:
    gateway, verifier, heard, heard_by_verifier = await connect(), await connect(), Heard(), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    await verifier.bus.subscribe(INBOX, heard_by_verifier)
    await gateway.bus.publish(OPENS, Close(SESSION, 1), absent_to=ABSENT_TO)
    await heard_by_verifier.wait_for(1)
    await gateway.bus.publish(OPENED, Close(SESSION, 1))
    assert await heard.wait_for(1) == [Close(SESSION, 1)]


async def test_who_did_not_ask_hears_nothing_of_absence(connect: Connect) -> None:
    gateway, heard = await connect(), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    await gateway.bus.publish(OPENS, Close(SESSION, 1))
    await gateway.bus.publish(OPENED, Close(SESSION, 1))
    assert await heard.wait_for(1) == [Close(SESSION, 1)]


async def test_absence_is_asked_for_on_an_absent_subject_only(connect: Connect) -> None:
    gateway = await connect()
    with pytest.raises(ValueError, match="absent_to"):
        await gateway.bus.publish(OPENS, Close(SESSION, 1), absent_to=OPENED)


async def test_a_member_that_has_closed_is_absent(connect: Connect) -> None:
    gateway, verifier, heard = await connect(), await connect(), Heard()
    await gateway.bus.subscribe(GATEWAY_INBOX, heard)
    await verifier.bus.subscribe(INBOX, Heard())
    await verifier.bus.close()
    await gateway.bus.publish(OPENS, Close(SESSION, 1), absent_to=ABSENT_TO)
    assert await heard.wait_for(1) == [Absent()]


async def test_a_handler_that_fails_costs_that_message_only(connect: Connect) -> None:
    drafter, verifier, heard = await connect(), await connect(), Heard()

    def fail_at_first(subject: str, message: Message | Absent) -> None:
        if message == draft(0):
            raise RuntimeError("no such session")
        heard(subject, message)

    await verifier.bus.subscribe(INBOX, fail_at_first)
    with structlog.testing.capture_logs() as lines:
        for base in range(3):
            await drafter.bus.publish(DRAFTS, draft(base))
        assert await heard.wait_for(2) == [draft(1), draft(2)]
    assert verifier.count("dropped_messages", reason="handler failed") == 1
    assert [line["event"] for line in lines] == ["handler failed"]


def test_messages_that_never_become_whole_are_counted() -> None:
    registry, heard = CollectorRegistry(), Heard()
    receiver = Receiver(heard, BusMetrics(registry))
    assert registry.get_sample_value("dsd_bus_dropped_messages_total", {"reason": "incomplete"}) == 0, (
        "before the first one"
    )
    for _ in range(MAX_WAITING + 3):
        receiver.receive(DRAFTS, split(bytes(PART_BYTES + 1))[0])
    assert registry.get_sample_value("dsd_bus_dropped_messages_total", {"reason": "incomplete"}) == 3


async def test_after_unsubscribing_nothing_is_heard(connect: Connect) -> None:
    drafter, verifier, heard, still_heard = await connect(), await connect(), Heard(), Heard()
    subscription = await verifier.bus.subscribe(INBOX, heard)
    await verifier.bus.subscribe(INBOX, still_heard)
    await drafter.bus.publish(DRAFTS, draft(1))
    await heard.wait_for(1)
    await subscription.unsubscribe()
    await drafter.bus.publish(DRAFTS, draft(2))
    assert await still_heard.wait_for(2) == [draft(1), draft(2)]
    assert heard.messages == [draft(1)]


async def test_what_was_published_before_closing_arrives(connect: Connect) -> None:
    drafter, verifier, heard = await connect(), await connect(), Heard()
    await verifier.bus.subscribe(INBOX, heard)
    for base in range(50):
        await drafter.bus.publish(DRAFTS, draft(base))
    await drafter.bus.close()
    assert await heard.wait_for(50) == [draft(base) for base in range(50)]


async def test_publishing_after_closing_is_counted_and_harmless(connect: Connect) -> None:
    drafter = await connect()
    await drafter.bus.close()
    await drafter.bus.publish(DRAFTS, draft(1))
    assert drafter.count("dropped_messages", reason="not connected") == 1
    assert drafter.count("published_messages", message="Draft") == 0
    await drafter.bus.close()


async def test_subscribing_after_closing_is_refused(connect: Connect) -> None:
    member = await connect()
    await member.bus.close()
    with pytest.raises(ConnectionError, match="closed"):
        await member.bus.subscribe(INBOX, Heard())
