"""From tokens to text: incremental detokenising and stop strings.

Invariant: the pieces of text joined are the same however verdicts cut the tokens. No piece ends inside a character, and
none has a character of a stop string or of text that may still become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"  # what a decoder returns for bytes that are no character (yet)
NUM_CONTEXT_TOKENS = 6  # prompt tokens that the decoder reads before the answer


class Detokenizer:
    """Text of one answer, token by token, without special tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        context = list(prompt_ids[-NUM_CONTEXT_TOKENS:])
        if self._decode(context).endswith(REPLACEMENT):
            context = []
        self._shown = context  # the tokens of the newest piece of text, context of the next one
        self._pending: list[int] = []  # tokens whose text is not complete
        self._stream = DecodeStream(ids=context, skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """The text that is complete with this token; empty inside a character."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception as error:  # the library raises nothing more precise
            if "prefix" not in str(error):
                raise
            return self._restart()
        if text:
            self._shown, self._pending = self._pending, []
        return text or ""

    def flush(self) -> str:
        """The rest when no token follows; bytes of an unfinished character become replacement characters."""
        return self._restart() if self._pending else ""

    def _restart(self) -> str:
        """Decodes the pending tokens as far as possible and continues behind them. Used at the end of the answer, and
        for bytes that are not valid text."""
        before, whole = self._decode(self._shown), self._decode(self._shown + self._pending)
        text = whole[len(before) :] if whole.startswith(before) else self._decode(self._pending)
        self._shown, self._pending = self._pending, []
        self._stream = DecodeStream(ids=self._shown, skip_special_tokens=True)
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


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
