"""The bytes of single tokens, which may be parts of characters.

Invariant: the bytes from `split` joined are the UTF-8 of the decoder's text, or the bytes that the decoder replaced
because they are not valid text.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"  # what a decoder returns for bytes that are no character (yet)


class TokenBytes:
    """Bytes and names of one tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = {token_id: token.content for token_id, token in added.items() if token.special}
        self._shows_special = False
        self._known: dict[int, bytes] = {}  # of tokens that have been asked for
        kinds = _decoder_kinds(tokenizer)
        self._byte_of = _byte_level_alphabet() if "ByteLevel" in kinds else {}
        self._has_byte_tokens = "ByteFallback" in kinds
        self.is_byte_level = kinds - {"Sequence", "Fuse"} == {"ByteLevel"}  # a text is the bytes of its tokens
        self._anchor = next((i for i in range(tokenizer.get_vocab_size()) if self._is_anchor(i)), None)

    def showing(self, texts: Collection[str]) -> TokenBytes:
        """The same, but that special tokens with these names are text."""
        if self._hidden.keys() <= (hidden := {n: text for n, text in self._hidden.items() if text not in texts}).keys():
            return self
        other = copy.copy(self)
        other._hidden, other._shows_special, other._known = hidden, True, {}
        return other

    def special_ids(self, texts: Collection[str]) -> dict[str, int]:
        """Ids of those texts that are special tokens."""
        return {text: token_id for token_id, text in self._hidden.items() if text in texts}

    def of(self, token_id: int) -> bytes | None:
        """The bytes that the token adds behind other text; None for a special token, which has no text."""
        known = self._known.get(token_id)
        if known is None and (known := self._bytes_of(token_id)) is not None:  # never for ids beyond the tokenizer
            self._known[token_id] = known
        return known

    def _bytes_of(self, token_id: int) -> bytes | None:
        piece = self.piece(token_id)
        if piece is None:
            return None
        if self._byte_of and all(character in self._byte_of for character in piece):
            return bytes(self._byte_of[character] for character in piece)
        byte = self.byte_of(token_id)
        if byte is not None:
            return byte
        return (piece if self.is_byte_level else self._decoded(token_id)).encode()

    def piece(self, token_id: int) -> str | None:
        """The token in the vocabulary; None if it never has text: a special token, or one unknown to the tokenizer."""
        if token_id in self._hidden:
            return None
        piece: str | None = self._tokenizer.id_to_token(token_id)  # a model's vocabulary may be padded beyond it
        return piece

    def byte_of(self, token_id: int) -> bytes | None:
        """The byte of a token that is the name of one, `<0xf0>`."""
        piece = self.piece(token_id) if self._has_byte_tokens else None
        is_name = piece is not None and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        return bytes.fromhex(piece[3:5]) if piece and is_name else None

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokenizer's text of all of them, without hidden tokens."""
        shown = [token_id for token_id in token_ids if token_id not in self._hidden]
        return str(self._tokenizer.decode(shown, skip_special_tokens=not self._shows_special))

    def name(self, token_id: int, data: bytes | None) -> str:
        """The token as a string: its text, a special token's name, or `bytes:\\xf0\\x9f` for part of a character."""
        if data is None:
            return self._tokenizer.id_to_token(token_id) or f"<{token_id}>"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def split(self, token_ids: Sequence[int], text: str) -> list[bytes | None]:
        """The bytes of each token, given the `text` that a decoder made of them together."""
        parts = [self.of(token_id) for token_id in token_ids]
        if b"".join(part or b"" for part in parts).decode(errors="replace") == text:
            return parts
        shown = [i for i, part in enumerate(parts) if part is not None]
        for i in shown:
            parts[i] = b""
        parts[shown[-1] if shown else -1] = text.encode()
        return parts

    def _is_anchor(self, token_id: int) -> bool:
        """Whether the token decodes to an ordinary word, so that other tokens can be decoded behind it."""
        text = self.decode([token_id])
        return text.isalpha() and REPLACEMENT not in text

    def _decoded(self, token_id: int) -> str:
        """The text that a decoder adds for the token behind an ordinary one."""
        before = [] if self._anchor is None else [self._anchor]
        alone = self.decode(before)
        whole = self.decode([*before, token_id])
        return whole[len(alone) :] if whole.startswith(alone) else whole


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    """Types of the steps of the tokenizer's decoder."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    return {step["type"] for step in [decoder, *decoder.get("decoders", [])] if step}


def _byte_level_alphabet() -> dict[str, int]:
    """Character of a byte-level vocabulary -> byte. Printable bytes are their own characters; the others map in order
    to U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
