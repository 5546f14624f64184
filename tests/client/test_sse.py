"""Server-sent events out of bytes."""

from __future__ import annotations

import itertools

import pytest

from client import sse
from client.sse import EventParser, OversizeEvent

STREAM = (
    b'\xef\xbb\xbf: a comment\r\ndata: {"a": 1}\r\n\r\n'
    b"event: x\rdata:two\rdata:  lines \r\r"
    b"data: a\r\ndata: b\r\n\r\n"
    b"id: 7\n\ndata\n\n\ndata: \xc3\xa4\n\n"
)
EVENTS = ['{"a": 1}', "two\n lines ", "a\nb", "", "ä"]


def parse(*parts: bytes) -> list[str]:
    parser = EventParser()
    return [event for part in parts for event in parser.feed(part)]


def test_events_are_parsed_as_the_standard_says() -> None:
    assert parse(STREAM) == EVENTS


def test_the_events_are_the_same_however_the_bytes_are_cut() -> None:
    for first, second in itertools.combinations_with_replacement(range(len(STREAM) + 1), 2):
        assert parse(STREAM[:first], STREAM[first:second], STREAM[second:]) == EVENTS, (first, second)
    assert parse(*(bytes([byte]) for byte in STREAM)) == EVENTS


def test_an_event_whose_blank_line_is_missing_is_none() -> None:
    assert parse(b"data: 1\n") == []


@pytest.mark.parametrize("part", [b"x" * 60, b"data: xxxxxxxxxxxxx\n"], ids=["line", "lines"])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(OversizeEvent):
        parse(*[part] * 10)


def test_many_small_events_are_no_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    assert len(parse(*[b"data: xxxxxxxxxxxxx\n\n"] * 50)) == 50
