"""Text to token ids, by calls of the library that release the interpreter lock.

Invariant: a text with far more tokens than any context holds is refused before all of it is encoded.
"""

from __future__ import annotations

from tokenizers import Encoding, Tokenizer

from shared.protocol.messages import MAX_TOKENS

PIECE_CHARACTERS = 1 << 16  # longer texts are counted first, in pieces of this length
MAX_COUNTED = 2 * MAX_TOKENS  # in pieces: cutting a text adds a few tokens, and never as many as it has


class PromptTooLong(ValueError):
    """The text has more tokens than the longest possible context."""

    def __init__(self) -> None:
        super().__init__(f"The prompt has more than {MAX_TOKENS} tokens, which no context holds")


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The ids of a text. add_special_tokens: with those that the tokenizer puts around it. Raises PromptTooLong."""
    _check_length(tokenizer, text)
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    if len(encoding) > MAX_TOKENS:
        raise PromptTooLong
    return list(encoding.ids)


def encode_with_offsets(tokenizer: Tokenizer, text: str) -> Encoding:
    """The ids of a text and the characters of each. Raises PromptTooLong."""
    _check_length(tokenizer, text)
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
    if len(encoding) > MAX_COUNTED:
        raise PromptTooLong
    return encoding


def _check_length(tokenizer: Tokenizer, text: str) -> None:
    num_tokens = 0
    for start in range(0, len(text), PIECE_CHARACTERS) if len(text) > PIECE_CHARACTERS else ():
        piece = text[start : start + PIECE_CHARACTERS]
        num_tokens += len(tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0])
        if num_tokens > MAX_COUNTED:
            raise PromptTooLong
