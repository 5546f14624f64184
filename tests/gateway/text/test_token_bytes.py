"""The bytes of single tokens, for each way in which tokenizers write them."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from services.gateway.text.token_bytes import TokenBytes
from tests.gateway.http.answers import TOKENIZER, ids_of


def sentencepiece() -> Tokenizer:
    """Spaces as ▁, single bytes as <0x..>."""
    vocabulary = {"▁to": 0, "▁day": 1, "s": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("</s>", special=True)])
    return tokenizer


def test_byte_level_tokens_are_their_bytes() -> None:
    table = TokenBytes(TOKENIZER)
    for text in ("hello world", "naïve 😀 日本", "\n\t\x00\x7f\xa0\xad"):
        assert b"".join(table.of(token_id) or b"" for token_id in ids_of(text)) == text.encode()
    assert table.of(0) is None
    assert table.name(0, None) == "<|endoftext|>"


def test_every_byte_has_its_character_in_a_byte_level_vocabulary() -> None:
    table = TokenBytes(TOKENIZER)
    alone = {table.of(token_id) for token_id in range(TOKENIZER.get_vocab_size())}
    assert {bytes([byte]) for byte in range(256)} <= alone


def test_pieces_with_marked_spaces_and_byte_tokens_are_read_as_their_decoder_does() -> None:
    table = TokenBytes(sentencepiece())
    expected = [b" to", b" day", b"s", b"\xc3", b"\xa9", b" ", b"<tool>", None]
    assert [table.of(token_id) for token_id in range(8)] == expected
    assert table.name(3, b"\xc3") == "bytes:\\xc3"


def test_ids_beyond_the_tokenizer_show_nothing() -> None:
    assert TokenBytes(TOKENIZER).of(5000) is None
    assert TokenBytes(TOKENIZER).name(5000, None) == "<5000>"


def test_a_table_that_shows_a_special_token_leaves_the_other_as_it_was() -> None:
    table = TokenBytes(TOKENIZER)
    assert table.showing(["<|endoftext|>"]).of(0) == b"<|endoftext|>"
    assert table.of(0) is None


@pytest.mark.parametrize(
    ("token_ids", "text", "expected"),
    [
        ([0], "to", [b"to"]),  # at the beginning of a text the space is not meant
        ([3, 4], "é", [b"\xc3", b"\xa9"]),
        ([3], "\ufffd", [b"\xc3"]),  # cut off: the bytes stay true
        ([7, 0], "to", [None, b"to"]),
        ([7], "x", [b"x"]),
    ],
)
def test_the_bytes_of_tokens_are_those_of_their_text(
    token_ids: list[int], text: str, expected: list[bytes | None]
) -> None:
    assert TokenBytes(sentencepiece()).split(token_ids, text) == expected
