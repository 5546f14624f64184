"""Splitting messages into parts and putting them together, within bounds."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bus import parts
from shared.bus.parts import MAX_WAITING, MAX_WAITING_BYTES, MAX_WAITING_S, PART_BYTES, Assembler, split
from shared.protocol import subjects
from shared.protocol.messages import MAX_MESSAGE_BYTES, MalformedMessage, Open

VERIFIER = "cloud.0123456789ab"
SUBJECT = subjects.to("verifier", VERIFIER, Open, "gateway.000000000000")
ELSEWHERE = subjects.to("verifier", VERIFIER, Open, "gateway.111111111111")


def data_of(num_bytes: int, seed: int = 0) -> bytes:
    return b"\x98" + random.Random(seed).randbytes(num_bytes - 1)


def part(message_id: int, index: int, count: int, piece: bytes = b"x") -> bytes:
    return struct.pack("<BQHH", 0xC1, message_id, index, count) + piece


def subject_of(name: str, nonce: int = 0) -> str:
    return subjects.to("verifier", VERIFIER, Open, f"{name}.{nonce:012x}")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, MAX_MESSAGE_BYTES), st.randoms(use_true_random=False))
def test_parts_make_the_message_again_in_any_order_and_however_often(num_bytes: int, order: random.Random) -> None:
    data, assembler = data_of(num_bytes), Assembler()
    packets = split(data)
    assert all(len(packet) <= PART_BYTES for packet in packets)
    last = packets[-1]
    others = packets[:-1] * 2
    order.shuffle(others)
    assert [assembler.add(SUBJECT, packet, 0.0) for packet in others] == [None] * len(others)
    assert assembler.add(SUBJECT, last, 0.0) == data
    assert assembler.num_dropped == 0


@pytest.mark.parametrize("num_bytes", [1, PART_BYTES])
def test_what_fits_in_a_part_travels_as_it_is(num_bytes: int) -> None:
    assert split(data_of(num_bytes)) == [data_of(num_bytes)]


def test_one_byte_more_makes_two_parts() -> None:
    assert len(split(data_of(PART_BYTES + 1))) == 2


def test_more_than_a_message_may_have_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        split(bytes(MAX_MESSAGE_BYTES + 1))


def test_messages_of_two_senders_do_not_mix() -> None:
    assembler = Assembler()
    assert assembler.add(SUBJECT, part(1, 0, 2, b"mine, "), 0.0) is None
    assert assembler.add(ELSEWHERE, part(1, 1, 2, b"forged"), 0.0) is None
    assert assembler.add(SUBJECT, part(1, 1, 2, b"too"), 0.0) == b"mine, too"


def test_messages_of_one_sender_may_interleave() -> None:
    assembler, first, second = Assembler(), split(data_of(200_000, 1)), split(data_of(200_000, 2))
    whole = [assembler.add(SUBJECT, packet, 0.0) for pair in zip(first, second, strict=True) for packet in pair]
    assert [data for data in whole if data is not None] == [data_of(200_000, 1), data_of(200_000, 2)]


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        part(1, 0, 2, b""),
        part(1, 2, 2),
        part(1, 0, 0),
        part(1, 0, 1),
        part(1, 0, 60000),
        part(1, 0, 2, bytes(PART_BYTES)),
    ],
    ids=["no-header", "empty", "behind-the-end", "no-parts", "one-part", "too-many", "too-large"],
)
def test_a_part_that_lies_is_malformed_and_keeps_nothing(packet: bytes) -> None:
    assembler = Assembler()
    with pytest.raises(MalformedMessage):
        assembler.add(SUBJECT, packet, 0.0)
    assert assembler.num_waiting == 0


def test_parts_that_disagree_about_their_number_are_malformed() -> None:
    assembler = Assembler()
    assembler.add(SUBJECT, part(1, 0, 2), 0.0)
    with pytest.raises(MalformedMessage, match="of 3"):
        assembler.add(SUBJECT, part(1, 1, 3), 0.0)


def test_a_message_that_never_gets_whole_is_dropped_and_counted() -> None:
    assembler = Assembler()
    assembler.add(SUBJECT, part(1, 0, 2), 0.0)
    assembler.add(SUBJECT, part(2, 0, 2), MAX_WAITING_S)
    assert (assembler.num_waiting, assembler.num_dropped) == (2, 0)
    assembler.add(SUBJECT, part(3, 0, 2), MAX_WAITING_S + 0.001)
    assert (assembler.num_waiting, assembler.num_dropped) == (2, 1)


def test_the_number_of_waiting_messages_is_bounded() -> None:
    assembler = Assembler()
    for message_id in range(10 * MAX_WAITING):
        assembler.add(SUBJECT, part(message_id, 0, 2), 0.0)
    assert assembler.num_waiting == MAX_WAITING
    assert assembler.num_dropped == 9 * MAX_WAITING


def test_the_bytes_of_waiting_messages_are_bounded() -> None:
    assembler, packets = Assembler(), split(data_of(MAX_MESSAGE_BYTES))[:-1]
    for message_id in range(40):
        for index, packet in enumerate(packets):
            assembler.add(SUBJECT, part(message_id, index, len(packets) + 1, packet[13:]), 0.0)
            assert assembler.num_waiting_bytes <= MAX_WAITING_BYTES
    assert assembler.num_dropped > 20


def test_a_sender_that_floods_crowds_out_itself_and_nobody_else() -> None:
    """By whatever nonce it calls itself: permissions go by the name."""
    assembler, packets = Assembler(), split(data_of(150_000))
    for packet in packets[:-1]:
        assembler.add(subject_of("gateway"), packet, 0.0)
    for flood in range(500):
        assembler.add(subject_of("edge-1", flood), part(flood, 0, 2, bytes(parts.PART_BYTES - 13)), 0.0)
    assert assembler.add(subject_of("gateway"), packets[-1], 0.0) == data_of(150_000)
