"""Hostile messages of the bus: every type, with values of every field at, within and beyond their bounds.

Values follow from the types of shared/protocol/messages.py, so a new message or field is covered as soon as it exists.

Invariant: packets follow from the random generator and what is `Known` alone.
"""

from __future__ import annotations

import copy
import math
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
from msgspec import inspect

from shared.bus.parts import PART_BYTES
from shared.protocol.messages import KINDS, InstanceId, SessionId, TokenIds

SESSION, INSTANCE = (each.__metadata__[0].pattern for each in (SessionId, InstanceId))  # type: ignore[attr-defined]
BEYOND: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1 << 32, (1 << 48) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.0, -0.0,
    -1.0, 1e-320,
    1e15, 1.1e15, 1e308, math.nan, math.inf, -math.inf, "", "a", "\0", "a" * 300, "a" * 5000, "dsd.v1.>", "ＡＢ",
    "😀" * 70, b"", b"a",
    b"\xff" * 4, b"\xff" * 8, b"abc", b"\0" * 4000, [], [[]], [None], {}, {"a": 1}, {"a": {"b": []}}, [1] * 300,
    ["open"], msgpack.ExtType(5, b"a"),
    msgpack.Timestamp(0),
)  # fmt: skip
PART = struct.Struct("<BQHH")  # the header of a part (shared/bus/parts.py)
MARK = 0xC1
MAX_IDS, LOTS_OF_IDS = 16, 40_000  # token ids of most lists, and of one that needs several parts
SMALL = (2, 8, 100)  # integers up to here are likely: terms, epochs and lengths of living sessions
NUM_NEWEST = 3  # sessions in use that are named as often as all known ones together
CLAIMED = 1 << 17  # context and vocabulary of a heartbeat that wants sessions


@dataclass(slots=True)
class Known:
    """What a hostile peer knows of the others: instance ids by service, sessions in use, names and models."""

    instance_ids: dict[str, list[str]]
    session_ids: deque[str]
    models: list[str]
    own_id: str
    receiver_id: str = ""  # of the message that is made
    own_service: str = ""
    vocab_size: int = 1000
    heard: list[bytes] = field(default_factory=list)  # messages that others sent, to be sent again


def packets(kind: str, known: Known, rng: random.Random) -> list[bytes]:
    """A message of this kind as one packet or several."""
    if known.heard and rng.random() < 0.1:
        return [_spoilt(rng.choice(known.heard), rng) if rng.random() < 0.5 else rng.choice(known.heard)]
    raw = [kind, *_fields(_TYPES[kind], known, rng)]
    _name_oneself(kind, raw, known, rng)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        _replace_one(raw, rng)
    packet = msgpack.packb(raw, use_bin_type=True)
    way = rng.random()
    if way < 0.1:
        packet = _spoilt(packet, rng)
    if len(packet) > PART_BYTES or way > 0.95:
        return _parts(packet, rng)
    return [packet]


# --- values that fit their types -------------------------------------------------------------------------------------

_TYPES = {tag: inspect.type_info(kind) for tag, kind in KINDS.items()}


def _fields(kind: Any, known: Known, rng: random.Random) -> list[Any]:
    """The fields of a struct; now and then the last ones, which have defaults, are missing."""
    values = [_value(each.type, known, rng) for each in kind.fields]
    if rng.random() < 0.2:
        num_required = sum(each.required for each in kind.fields)
        values = values[: rng.randint(num_required, len(values))]
    return values


def _value(kind: Any, known: Known, rng: random.Random) -> Any:
    match kind:
        case inspect.StructType():
            return _fields(kind, known, rng)
        case inspect.UnionType():
            return _value(rng.choice(kind.types), known, rng)
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.LiteralType():
            return rng.choice(kind.values)
        case inspect.IntType():
            low, high = kind.ge or 0, kind.le if kind.le is not None else 1 << 48
            small = [rng.randint(low, min(high, low + most)) for most in SMALL]
            return rng.choice([low, high, *small])
        case inspect.FloatType():
            least, most = 1e-9 if kind.ge is None else kind.ge, 1e6 if kind.le is None else kind.le
            return rng.choice([least, most, rng.uniform(least, min(most, least + 1))])
        case inspect.StrType():
            return _text(kind, known, rng)
        case inspect.ListType() | inspect.VarTupleType():
            num = min(rng.choice((0, 1, 2, 3, 20)), kind.max_length or 20)
            return [_value(kind.item_type, known, rng) for _ in range(num)]
        case inspect.CustomType() if kind.cls is TokenIds:
            return _token_ids(known, rng)
    raise TypeError(f"no values for {kind}")


def _text(kind: inspect.StrType, known: Known, rng: random.Random) -> str:
    if kind.pattern == SESSION:
        in_use = list(known.session_ids)[-rng.choice((NUM_NEWEST, len(known.session_ids))) :]
        return rng.choice(in_use) if in_use and rng.random() < 0.7 else f"{rng.getrandbits(128):032x}"
    if kind.pattern == INSTANCE:
        everybody = [each for ids in known.instance_ids.values() for each in ids]
        return rng.choice([*everybody, known.own_id, f"x{rng.randrange(1000)}.{rng.getrandbits(48):012x}"])
    most = min(kind.max_length or 300, 300)
    return rng.choice([*known.models, "a", "é" * (most // 2), "a" * most, "dsd.v1.gateway.>"])[:most]


def _token_ids(known: Known, rng: random.Random) -> bytes:
    num = LOTS_OF_IDS if rng.random() < 0.002 else rng.choice((0, 1, 2, MAX_IDS, 64))
    most = (1 << 32) - 1 if rng.random() < 0.2 else known.vocab_size - 1
    return b"".join(rng.randint(0, most).to_bytes(4, "little") for _ in range(num))


def _name_oneself(kind: str, raw: list[Any], known: Known, rng: random.Random) -> None:
    """Mostly a broadcast names its sender, and a decision its receiver: others are dropped at once."""
    if rng.random() < 0.2:
        return
    if kind == "heartbeat":
        raw[1:4] = [known.own_service, known.own_id, rng.choice((0.05, 1.0, 3600.0))]
        if rng.random() < 0.3:  # one that gets sessions
            raw[4:7], raw[9:] = [list(known.models), CLAIMED, CLAIMED], [False]
    elif kind == "report":
        raw[1] = known.own_id
    elif kind == "window" and known.receiver_id:
        raw[1] = known.receiver_id


# --- values that do not ----------------------------------------------------------------------------------------------


def _replace_one(raw: list[Any], rng: random.Random) -> None:
    """Replaces, removes or adds a value anywhere in a message, its tag included."""
    holder = raw
    while (inner := [each for each in holder if isinstance(each, list) and each]) and rng.random() < 0.5:
        holder = rng.choice(inner)
    at = rng.randrange(len(holder))
    change = rng.randrange(8)
    if change == 0:
        del holder[at]
    elif change == 1:
        holder.insert(at, copy.deepcopy(rng.choice(BEYOND)))
    elif change == 2 and isinstance(holder[at], int | float):
        holder[at] = _next_to(holder[at], rng)
    elif change == 3:
        for _ in range(rng.choice((10, 200))):  # msgpack packs no more than 511 levels
            holder[at] = [holder[at]]
    else:
        holder[at] = copy.deepcopy(rng.choice(BEYOND))


def _next_to(value: float, rng: random.Random) -> float:
    if isinstance(value, bool):
        return 2
    if isinstance(value, int):
        return max(-(1 << 63), min((1 << 64) - 1, value + rng.choice((-1, 1))))
    return math.nextafter(value, rng.choice((-math.inf, math.inf)))


def _spoilt(packet: bytes, rng: random.Random) -> bytes:
    """Cut, changed, random or doubled bytes."""
    at = rng.randrange(len(packet) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: packet[:at],
        lambda: packet[:at] + rng.randbytes(4) + packet[at:],
        lambda: packet[:at] + bytes([rng.randrange(256)]) + packet[at + 1 :],
        lambda: rng.randbytes(rng.choice((1, 30, 3000))),
        lambda: packet + packet,
        lambda: b"\x91" * rng.choice((5, 500, 60_000)),  # lists in lists
        lambda: b"\xdd\xff\xff\xff\xff" + packet,  # a list of 4 billion
        lambda: b"\xc6\xff\xff\xff\xff" + packet,  # bytes of 4 GB
        lambda: b"",
    )
    return rng.choice(changes)()


def _parts(packet: bytes, rng: random.Random) -> list[bytes]:
    """The packet in parts: whole, with some missing, repeated or in another order, or with wrong headers."""
    size = PART_BYTES - PART.size if rng.random() < 0.5 else rng.choice((1, 100, 5000))
    pieces = [packet[at : at + size] for at in range(0, len(packet), size)][:300]
    message_id, count = rng.getrandbits(64) if rng.random() < 0.8 else 5, max(2, len(pieces))
    parts = [PART.pack(MARK, message_id, index, count) + piece for index, piece in enumerate(pieces)]
    way = rng.randrange(6)
    if way == 0:
        return parts
    if way == 1:
        return rng.sample(parts, max(1, len(parts) - 1))
    if way == 2:
        return parts[:1] * 3
    if way == 3:
        wrong = PART.pack(MARK, message_id, rng.choice((0, 1, 65535)), rng.choice((0, 1, 2, 17, 65535)))
        return [*parts[:1], wrong + b"a" * rng.choice((0, 1, 60_000)), *parts[1:2]]
    if way == 4:
        return [PART.pack(MARK, rng.getrandbits(64), 0, 16) + b"a" * (PART_BYTES - PART.size)]  # never complete
    return [PART.pack(MARK, message_id, 0, count)[: rng.randint(1, PART.size)]]
