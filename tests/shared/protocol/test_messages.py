"""Messages on the wire: what is decoded, and that nothing else gets through."""

import contextlib
import math
import struct
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.protocol.messages import (
    MAX_MESSAGE_BYTES,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    MAX_WINDOW,
    NO_TOKENS,
    Close,
    Draft,
    Echo,
    Failure,
    Heartbeat,
    Load,
    MalformedMessage,
    Message,
    Open,
    Opened,
    PairReport,
    Poll,
    Reason,
    Report,
    Sampling,
    Speculate,
    Speculation,
    Tally,
    TokenIds,
    TokenLogprobs,
    Verdict,
    WindowDecision,
    decode,
    encode,
)

SESSION = "0123456789abcdef" * 2
DRAFTER, VERIFIER = "edge-1.0123456789ab", "cloud.ba9876543210"

counts = st.integers(0, 1 << 48)
positions = st.integers(0, MAX_TOKENS)
windows = st.integers(0, MAX_WINDOW)
millis = st.floats(0, 1e15)
shares = st.floats(0, 1)
flags = st.booleans()
printable = st.characters(codec="utf-8", exclude_categories=["Cc"])
names = st.text(printable, min_size=1, max_size=64)
short = st.text(printable, max_size=64)
cache_scopes = st.none() | st.text(max_size=64)
session_ids = st.text("0123456789abcdef", min_size=32, max_size=32)
instance_ids = st.from_regex(r"[a-z0-9-]{1,64}\.[0-9a-f]{12}", fullmatch=True)
controllers = st.lists(instance_ids, max_size=2).map(tuple)
token_ids = st.lists(st.integers(0, (1 << 32) - 1), max_size=100).map(TokenIds)
guesses = st.lists(st.integers(0, (1 << 32) - 1), max_size=MAX_WINDOW).map(TokenIds)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1 << 31),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=shares,
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
)
loads = st.builds(Load, *[counts] * 7, millis, millis)
tallies = st.builds(Tally, *[counts] * 5)
pair_reports = st.builds(
    PairReport,
    instance_ids,
    counts,
    windows,
    *[counts] * 5,
    *[millis] * 2,
    shares,
    millis,
    counts,
    *[millis] * 3,
    flags,
)
max_tokens = st.integers(1, MAX_TOKENS)
MESSAGES: dict[type, st.SearchStrategy[Message]] = {
    Open: st.builds(
        Open,
        session_ids,
        counts,
        st.none() | instance_ids,
        token_ids,
        token_ids,
        samplings,
        token_ids,
        max_tokens,
        flags,
        positions,
        st.none() | st.integers(0, MAX_TOP_LOGPROBS),
        cache_scopes,
    ),
    Opened: st.builds(Opened, session_ids, counts, st.floats(0, 1e6, exclude_min=True), loads, names, flags),
    Speculate: st.builds(
        Speculate,
        session_ids,
        counts,
        instance_ids,
        token_ids,
        token_ids,
        samplings,
        token_ids,
        max_tokens,
        st.builds(Speculation, st.sampled_from(["adaptive", "static"]), windows, shares),
        positions,
        cache_scopes,
    ),
    Draft: st.builds(Draft, session_ids, counts, counts, positions, guesses, flags, millis),
    Verdict: st.builds(
        Verdict,
        session_ids,
        counts,
        counts,
        positions,
        token_ids,
        counts,
        st.sampled_from(["stop", "length", None]),
        st.none() | st.builds(Echo, millis, millis),
        millis,
        counts,
        shares,
        tallies,
    ),
    Poll: st.builds(Poll, session_ids, counts, positions),
    Close: st.builds(Close, session_ids, counts),
    Report: st.builds(Report, instance_ids, counts, st.lists(pair_reports, max_size=4), short, controllers),
    WindowDecision: st.builds(
        WindowDecision,
        instance_ids,
        instance_ids,
        windows,
        st.integers(1, MAX_WINDOW),
        flags,
        names,
        counts,
        shares,
        st.none() | st.builds(Reason, counts, st.none() | shares, *[millis] * 4, shares, millis),
    ),
    Heartbeat: st.builds(
        Heartbeat,
        st.sampled_from(["gateway", "drafter", "verifier", "controller"]),
        instance_ids,
        st.floats(0, 3600, exclude_min=True),
        st.lists(names, max_size=4),
        counts,
        counts,
        short,
        loads,
        flags,
        short,
        short,
    ),
    Failure: st.builds(
        Failure,
        session_ids,
        counts,
        st.sampled_from(["unknown_session", "closed", "overloaded", "too_long", "draining", "bad_request", "internal"]),
        st.text(printable, max_size=100),
        flags,
    ),
}
messages = st.one_of(*MESSAGES.values())
values = st.recursive(
    st.none() | flags | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=20,
)


def draft(**changes: object) -> list[object]:
    """A Draft as its wire array, with some fields changed."""
    fields: dict[str, object] = {
        "tag": "draft",
        "session_id": SESSION,
        "term": 1,
        "epoch": 2,
        "base": 3,
        "token_ids": struct.pack("<2I", 7, 8),
        "free_run": True,
        "sent_ms": 1.5,
    }
    return list((fields | changes).values())


def test_every_message_has_a_strategy_here() -> None:
    assert set(MESSAGES) == set(get_args(Message))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    again = decode(encode(message))
    assert again == message
    assert type(again) is type(message)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_are_malformed_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(values)
def test_any_other_messagepack_value_is_malformed_and_nothing_worse(value: object) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(value))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(messages, st.data())
def test_a_message_with_a_foreign_field_is_never_another_error(message: Message, data: st.DataObject) -> None:
    raw = msgpack.unpackb(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(values)
    with contextlib.suppress(MalformedMessage):  # a message is fine too, where the field's type allows the value
        decode(msgpack.packb(raw))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(messages, st.data())
def test_damaged_bytes_are_never_another_error(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessage):  # a damaged number is a number still
        decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


def test_the_plain_draft_of_these_tests_is_well_formed() -> None:
    assert decode(msgpack.packb(draft())) == Draft(SESSION, 1, 2, 3, TokenIds((7, 8)), True, 1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": "nope"},
        {"tag": None},
        {"session_id": "short"},
        {"session_id": SESSION.upper().replace("0", "G")},
        {"session_id": SESSION + "\n"},
        {"session_id": SESSION.encode()},
        {"term": -1},
        {"term": True},
        {"term": 1.0},
        {"term": "1"},
        {"term": (1 << 48) + 1},
        {"base": MAX_TOKENS + 1},
        {"token_ids": b"abc"},
        {"token_ids": "abcd"},
        {"token_ids": [1, 2]},
        {"token_ids": None},
        {"token_ids": bytes(4 * (MAX_WINDOW + 1))},
        {"free_run": 1},
        {"free_run": None},
        {"sent_ms": float("nan")},
        {"sent_ms": float("inf")},
        {"sent_ms": -1.0},
        {"sent_ms": "now"},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_draft_with_a_wrong_field_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(draft(**changes)))


@pytest.mark.parametrize(
    "drafter_id", ["edge", "Edge.0123456789ab", DRAFTER + "\n", "*.0123456789ab", "a.b." + "0" * 12]
)
def test_an_instance_id_that_could_change_a_subject_is_malformed(drafter_id: str) -> None:
    with pytest.raises(MalformedMessage):
        decode(encode(WindowDecision(drafter_id, VERIFIER, 8, 2, True, "static", 1)))


@pytest.mark.parametrize("min_confidence", [-0.1, 1.1, float("nan"), "high"])
def test_a_threshold_that_is_no_probability_is_malformed(min_confidence: object) -> None:
    with pytest.raises(MalformedMessage):
        decode(encode(WindowDecision(DRAFTER, VERIFIER, 8, 2, True, "static", 1, min_confidence)))


@pytest.mark.parametrize(
    "logprobs",
    [
        [math.nan, NO_TOKENS, []],
        [math.inf, NO_TOKENS, []],
        [1e308, NO_TOKENS, []],
        [0.0, TokenIds((1,)), [math.nan]],
        [0.0, TokenIds((1, 2)), [0.0]],
        [0.0, NO_TOKENS, [0.0]],
    ],
)
def test_a_logprob_that_no_token_can_have_is_malformed(logprobs: list[object]) -> None:
    """Of an answer's JSON the first three would make a null, the others end it."""
    verdict = Verdict(SESSION, 1, 0, 3, TokenIds((7,)), 0, None, None, 0.0, 1, 0.0, Tally(), pass_tokens=1)
    raw = msgpack.unpackb(encode(verdict))
    number = 1 + Verdict.__struct_fields__.index("logprobs")
    raw[number] = [[logprobs[0], struct.pack(f"<{len(logprobs[1])}I", *logprobs[1]), logprobs[2]]]
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(raw))
    raw[number] = [[-math.inf, struct.pack("<I", 7), [-math.inf]]]
    assert decode(msgpack.packb(raw)).logprobs == [TokenLogprobs(-math.inf, TokenIds((7,)), [-math.inf])]


@pytest.mark.parametrize("text", ["\x1b[2J", "two\nlines", "\x7f", "\x9b31m", "x" * 1025])
def test_a_text_with_control_characters_or_without_end_is_malformed(text: str) -> None:
    """Logs, terminals and answers show these texts."""
    heartbeat = Heartbeat("drafter", DRAFTER, 1.0, ["m"], 1, 1, "cpu", Load(), False)
    for changed in ({"models": [text]}, {"fingerprint": text}, {"provider": text}, {"machine": text}):
        with pytest.raises(MalformedMessage):
            decode(encode(replace(heartbeat, **changed)))
    for message in (
        Failure(SESSION, 1, "internal", text, True),
        Opened(SESSION, 1, 1.0, Load(), text),
        Report(DRAFTER, 1, [], text),
        WindowDecision(DRAFTER, VERIFIER, 8, 2, True, text, 1),
    ):
        with pytest.raises(MalformedMessage):
            decode(encode(message))


def test_a_decision_of_a_controller_that_knows_no_threshold_never_stops_early() -> None:
    known = encode(WindowDecision(DRAFTER, VERIFIER, 8, 2, True, "static", 1, 0.5))
    assert decode(msgpack.packb(msgpack.unpackb(known)[:-1])).min_confidence == 0


def test_last_fields_with_their_defaults_are_left_out_so_an_older_peer_takes_what_is_not_new_to_it() -> None:
    plain = Open(SESSION, 1, None, TokenIds((7,)), NO_TOKENS, Sampling(), NO_TOKENS, 5)
    raw = msgpack.unpackb(encode(plain))
    assert raw == ["open", SESSION, 1, None, struct.pack("<I", 7), b"", [], b"", 5]
    assert len(msgpack.unpackb(encode(replace(plain, min_tokens=2)))) == len(raw) + 2  # and free_run before it
    assert decode(msgpack.packb(raw)) == plain
    assert msgpack.unpackb(encode(Report(DRAFTER, 1, []))) == ["report", DRAFTER, 1, []]


def test_a_report_names_at_most_two_controllers() -> None:
    both = ("one.0123456789ab", "two.0123456789ab")
    assert decode(encode(Report(DRAFTER, 1, [], "", both))).controllers == both
    with pytest.raises(MalformedMessage):
        decode(encode(Report(DRAFTER, 1, [], "", (*both, DRAFTER))))


def test_a_draft_that_lacks_a_field_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(draft()[:-1]))


def test_a_full_window_of_guesses_passes_and_one_more_does_not() -> None:
    full = Draft(SESSION, 0, 0, 0, TokenIds(range(MAX_WINDOW)), True, 0.0)
    assert decode(encode(full)) == full
    with pytest.raises(MalformedMessage, match="at most 64"):
        decode(encode(Draft(SESSION, 0, 0, 0, TokenIds(range(MAX_WINDOW + 1)), True, 0.0)))


def test_the_longest_prompt_passes_and_a_longer_one_does_not() -> None:
    longest = Open(SESSION, 0, None, TokenIds(range(MAX_TOKENS)), NO_TOKENS, Sampling(), NO_TOKENS, 1)
    assert decode(encode(longest)) == longest
    longer = Open(SESSION, 0, None, TokenIds(range(MAX_TOKENS + 1)), NO_TOKENS, Sampling(), NO_TOKENS, 1)
    with pytest.raises(MalformedMessage):
        decode(encode(longer))


@pytest.mark.parametrize(
    ("traceparent", "is_one"),
    [
        (f"00-{SESSION}-{'1' * 16}-01", True),
        (f"00-{SESSION}-{'1' * 16}-00", False),
        (f"00-{SESSION}-{'1' * 16}-01\n", False),
        (f"00-{SESSION.upper()}-{'1' * 16}-01", False),
        ("", False),
    ],
)
def test_a_trace_context_is_that_of_a_sampled_span(traceparent: str, is_one: bool) -> None:
    opened = Open(SESSION, 1, None, NO_TOKENS, NO_TOKENS, Sampling(), NO_TOKENS, 1, traceparent=traceparent)
    asked = Speculate(
        SESSION, 1, VERIFIER, NO_TOKENS, NO_TOKENS, Sampling(), NO_TOKENS, 1, Speculation(), traceparent=traceparent
    )
    for message in (opened, asked):
        with contextlib.nullcontext() if is_one else pytest.raises(MalformedMessage):
            assert decode(encode(message)) == message


def test_more_bytes_than_a_message_may_have_are_not_even_parsed() -> None:
    with pytest.raises(MalformedMessage, match="at most"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
def test_deep_nesting_is_malformed(opening: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(opening * 100_000 + b"\xc0")


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_claimed_length_without_content_is_malformed(claim: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(claim)


def test_extension_types_and_timestamps_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(draft(sent_ms=msgpack.Timestamp(1))))
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(msgpack.ExtType(5, b"x")))


def test_a_token_id_outside_32_bits_is_not_sent() -> None:
    with pytest.raises(OverflowError):
        encode(Draft(SESSION, 0, 0, 0, TokenIds((1 << 32,)), True, 0.0))


def test_the_wire_form_of_a_draft_stays_what_other_versions_expect() -> None:
    assert encode(Draft(SESSION, 1, 2, 3, TokenIds((7, 70000)), True, 1.5)) == (
        b"\x98\xa5draft\xd9\x20" + SESSION.encode() + b"\x01\x02\x03\xc4\x08\x07\x00\x00\x00\x70\x11\x01\x00\xc3\xcb"
        b"\x3f\xf8\x00\x00\x00\x00\x00\x00"
    )


def test_slices_of_token_ids_are_token_ids() -> None:
    ids = TokenIds((1, 2, 3))
    assert ids[1:] == TokenIds((2, 3))
    assert type(ids[1:]) is TokenIds
    assert ids[1] == 2


def test_token_ids_are_written_without_a_python_call_for_each() -> None:
    class Watched(TokenIds):
        num_calls = 0

        def __getitem__(self, key: Any) -> Any:
            Watched.num_calls += 1
            return super().__getitem__(key)

    ids = Watched(range(1000))
    opened = Open(SESSION, 1, None, ids, NO_TOKENS, Sampling(), NO_TOKENS, 9)
    read = decode(encode(opened))
    assert isinstance(read, Open)
    assert tuple(read.prompt_ids) == tuple(ids)
    assert Watched.num_calls == 0
