"""Messages above PART_BYTES: split by the sender, assembled by the receiver.

Invariant: a message is delivered whole or not at all. Incomplete messages are bounded in number, bytes and age. Above a
bound, the sender that holds most bytes loses its oldest message first.

Wire of a part, little-endian: 0xC1 (no MessagePack value starts with it), message id u64, index u16, count u16, piece
of the message. A message that fits in one part is sent without this header.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter
from dataclasses import dataclass, field

from shared.protocol import subjects
from shared.protocol.messages import MAX_MESSAGE_BYTES, MalformedMessage

PART_BYTES = 64 * 1024  # header included
MAX_WAITING = 64
MAX_WAITING_BYTES = 16 * MAX_MESSAGE_BYTES
MAX_WAITING_S = 10.0

_HEADER = struct.Struct("<BQHH")
_MARK = 0xC1
_PIECE_BYTES = PART_BYTES - _HEADER.size
_MAX_PARTS = -(-MAX_MESSAGE_BYTES // _PIECE_BYTES)


def split(data: bytes) -> list[bytes]:
    """The packets that carry `data`: itself or its parts. Raises ValueError above MAX_MESSAGE_BYTES."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message must have at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    if len(data) <= PART_BYTES:
        return [data]
    message_id = secrets.randbits(64)
    pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    return [_HEADER.pack(_MARK, message_id, index, len(pieces)) + piece for index, piece in enumerate(pieces)]


@dataclass(slots=True)
class _PartialMessage:
    """A message with missing parts."""

    sender: str
    since: float
    count: int
    pieces: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.pieces.values()))


class Assembler:
    """Assembles the messages of one subscription. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], _PartialMessage] = {}  # oldest first
        self.num_dropped = 0  # messages dropped while incomplete

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_bytes(self) -> int:
        return sum(waiting.num_bytes for waiting in self._waiting.values())

    def add(self, subject: str, packet: bytes, now: float) -> bytes | None:
        """The message that `packet` is or completes, else None. Raises MalformedMessage for an inconsistent part."""
        if packet[:1] != bytes([_MARK]):
            return packet
        message_id, index, count = _read_header(packet)
        self._forget_old(now)
        # The subject carries the sender's id, so no sender can add to another's message.
        key = (subject, message_id)
        sender = subjects.instance_name(subjects.sender(subject))
        waiting = self._waiting.setdefault(key, _PartialMessage(sender, now, count))
        if count != waiting.count:
            raise MalformedMessage(f"a part of {count} parts belongs to a message of {waiting.count} parts")
        waiting.pieces[index] = packet[_HEADER.size :]
        if len(waiting.pieces) == waiting.count:
            del self._waiting[key]
            return b"".join(waiting.pieces[index] for index in range(waiting.count))
        self._make_room()
        return None

    def _forget_old(self, now: float) -> None:
        for key, waiting in list(self._waiting.items()):
            if now - waiting.since <= MAX_WAITING_S:
                return
            self._drop(key)

    def _make_room(self) -> None:
        while self.num_waiting > MAX_WAITING or self.num_waiting_bytes > MAX_WAITING_BYTES:
            held: Counter[str] = Counter()
            for waiting in self._waiting.values():
                held[waiting.sender] += waiting.num_bytes
            heaviest = max(held, key=lambda sender: held[sender])
            self._drop(next(key for key, waiting in self._waiting.items() if waiting.sender == heaviest))

    def _drop(self, key: tuple[str, int]) -> None:
        del self._waiting[key]
        self.num_dropped += 1


def _read_header(packet: bytes) -> tuple[int, int, int]:
    """Message id, index and count of a part."""
    if not _HEADER.size < len(packet) <= PART_BYTES:
        raise MalformedMessage(f"a part must have {_HEADER.size + 1}…{PART_BYTES} bytes, got {len(packet)}")
    _, message_id, index, count = _HEADER.unpack_from(packet)
    if not (2 <= count <= _MAX_PARTS and index < count):
        raise MalformedMessage(f"a message must have 2…{_MAX_PARTS} parts, got part {index} of {count}")
    return message_id, index, count
