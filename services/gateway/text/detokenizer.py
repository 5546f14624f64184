"""From tokens to text: incremental detokenising and stop strings.

Invariant: the pieces of text joined are the same however verdicts cut the tokens. No piece ends inside a character, and
none has a character of a stop string or of text that may still become one. A token costs the same wherever it stands.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from typing import Protocol

from services.gateway.text.token_bytes import REPLACEMENT, TokenBytes

NUM_CONTEXT_TOKENS = 6  # prompt tokens that the decoder reads before the answer
MAX_HELD_TOKENS = 64  # whose text may wait for the end of a character
UTF8 = getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """Text of one answer, token by token, without special tokens."""

    def step(self, token_id: int) -> str:
        """The text that is complete with this token; empty inside a character."""

    def flush(self) -> str:
        """The rest when no token follows; bytes of an unfinished character become replacement characters."""


def detokenizer_of(token_bytes: TokenBytes, prompt_ids: Sequence[int] = ()) -> Detokenizer:
    """For an answer to the prompt."""
    return ByteDetokenizer(token_bytes) if token_bytes.is_byte_level else PieceDetokenizer(token_bytes, prompt_ids)


class ByteDetokenizer:
    """For byte-level vocabularies: the text is the UTF-8 of all tokens' bytes."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._utf8 = UTF8("replace")
        self._held: list[str] = []  # text of tokens that each ended inside a character

    def step(self, token_id: int) -> str:
        self._held.append(self._utf8.decode(self._token_bytes.of(token_id) or b""))
        is_inside = self._utf8.getstate()[0] and len(self._held) < MAX_HELD_TOKENS
        return "" if is_inside else self._take()

    def flush(self) -> str:
        self._held.append(self._utf8.decode(b"", final=True))
        return self._take()

    def _take(self) -> str:
        text, self._held = "".join(self._held), []
        return text


class PieceDetokenizer:
    """For other vocabularies: what the tokenizer's decoder adds for a token behind the tokens before it.

    A run of byte tokens that is not UTF-8 is one replacement character for each byte, as decoders have it.
    """

    def __init__(self, token_bytes: TokenBytes, prompt_ids: Sequence[int]) -> None:
        self._token_bytes = token_bytes
        self._shown = list(prompt_ids[-NUM_CONTEXT_TOKENS:])  # the tokens of the newest text, context of the next one
        self._before = token_bytes.decode(self._shown)
        if self._before.endswith(REPLACEMENT):
            self._shown, self._before = [], ""
        self._pending: list[int] = []  # tokens whose text is not complete
        self._run = UTF8()  # of byte tokens
        self._is_broken = False  # the run is not UTF-8

    def step(self, token_id: int) -> str:
        if self._token_bytes.piece(token_id) is None:
            return ""
        byte = self._token_bytes.byte_of(token_id)
        if byte is not None and self._is_broken:
            return REPLACEMENT
        self._pending.append(token_id)
        if byte is None:
            self._end_run()
            return self._take(may_wait=True)
        try:
            return self._take() if self._run.decode(byte) else ""
        except UnicodeDecodeError:
            self._is_broken = True
            return self._take()

    def flush(self) -> str:
        self._end_run()
        return self._take() if self._pending else ""

    def _end_run(self) -> None:
        self._run.reset()
        self._is_broken = False

    def _take(self, *, may_wait: bool = False) -> str:
        """The text of the pending tokens. If it may wait: nothing yet if it ends inside a character."""
        whole = self._token_bytes.decode([*self._shown, *self._pending])
        text = whole.removeprefix(self._before)
        if not whole.startswith(self._before):
            text = self._token_bytes.decode(self._pending)
        if may_wait and (not text or text.endswith(REPLACEMENT)) and len(self._pending) < MAX_HELD_TOKENS:
            return ""
        self._shown, self._pending = self._pending, []
        self._before = self._token_bytes.decode(self._shown)
        return text


class StopScanner:
    """Finds the stop string that the text completes first; of two completed by one character the longer one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""  # text that may be the beginning of a stop string
        self.found: str | None = None

    def feed(self, text: str, *, may_stop: bool = True) -> str:
        """The text that is final now, without a stop string and what follows it. may_stop False: no character of this
        text completes a stop string."""
        if self.found is not None or not self._stops:
            return "" if self.found is not None else text
        known = len(self._held)
        self._held += text
        for end in range(known + 1, len(self._held) + 1) if may_stop else ():
            self.found = next((stop for stop in self._stops if self._held.endswith(stop, 0, end)), None)
            if self.found is not None:
                shown, self._held = self._held[: end - len(self.found)], ""
                return shown
        keep = self._longest_prefix()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The held text, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _longest_prefix(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = min(len(self._held), len(self._stops[0]) - 1)
        ends = (self._held[-n:] for n in range(longest, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) and stop != end for stop in self._stops)), 0)
