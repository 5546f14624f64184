"""Parser of server-sent events, after the HTML standard.

Invariant: the events are the same however the network cuts the bytes. An event without its final blank line is dropped.
No I/O.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class OversizeEvent(ValueError):
    """An event is larger than any answer of a gateway."""


class EventParser:
    """Takes bytes, returns the data of the events that they complete. Other fields of events are ignored."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line
        self._data: list[bytes] = []
        self._num_bytes = 0  # of the event so far
        self._is_first = True

    def feed(self, data: bytes) -> list[str]:
        """The data of the events that end in `data`; raises OversizeEvent."""
        text = self._rest + data
        # A CR at the end may belong to a CR LF, whose LF comes with the next bytes.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._num_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise OversizeEvent(f"an event of the stream is larger than {MAX_EVENT_BYTES} bytes")
        return events

    def _take(self, line: bytes) -> str | None:
        """The data of the event that this line ends; None if it ends no event, or one without data."""
        if self._is_first:
            line, self._is_first = line.removeprefix(BYTE_ORDER_MARK), False
        if line:
            self._num_bytes += len(line)
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data, self._num_bytes = self._data, [], 0
        return b"\n".join(data).decode(errors="replace") if data else None
