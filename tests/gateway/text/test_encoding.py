"""Encoding of long texts: whole if they may fit into a context, else refused early; other threads go on meanwhile."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tokenizers import Tokenizer

from services.gateway.text.encoding import MAX_COUNTED, PIECE_CHARACTERS, PromptTooLong, encode
from shared.protocol.messages import MAX_TOKENS
from tests.gateway.tiny import make_tokenizer


@dataclass
class Ids:
    ids: range

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class CountingTokenizer:
    """Makes a token of every few characters, and remembers the lengths of the texts."""

    characters_per_token: int
    lengths: list[int] = field(default_factory=list)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Ids]:
        self.lengths += map(len, texts)
        return [Ids(range(-(-len(text) // self.characters_per_token))) for text in texts]


def test_of_a_text_without_end_only_as_much_is_encoded_as_contexts_hold() -> None:
    tokenizer = CountingTokenizer(1)
    with pytest.raises(PromptTooLong, match=f"more than {MAX_TOKENS} tokens"):
        encode(cast(Tokenizer, tokenizer), "x" * (4 << 20))
    assert max(tokenizer.lengths) == PIECE_CHARACTERS
    assert sum(tokenizer.lengths) <= MAX_COUNTED + PIECE_CHARACTERS


def test_a_long_text_that_fits_is_encoded_as_a_whole() -> None:
    tokenizer = CountingTokenizer(40)
    assert len(encode(cast(Tokenizer, tokenizer), "x" * (4 << 20))) == -(-(4 << 20) // 40)
    assert tokenizer.lengths[-1] == 4 << 20


def test_no_more_ids_are_returned_than_a_context_holds() -> None:
    tokenizer = CountingTokenizer(1)
    assert len(encode(cast(Tokenizer, tokenizer), "x" * MAX_TOKENS)) == MAX_TOKENS
    with pytest.raises(PromptTooLong):
        encode(cast(Tokenizer, tokenizer), "x" * (MAX_TOKENS + 1))


def test_other_threads_go_on_while_a_text_is_encoded() -> None:
    tokenizer, text, ids = make_tokenizer(), "once upon " * 30_000, []
    worker = threading.Thread(target=lambda: ids.extend(encode(tokenizer, text)))
    worker.start()
    num_turns = 0
    while worker.is_alive():
        time.sleep(0.0002)
        num_turns += 1
    assert ids == tokenizer.encode(text).ids
    assert num_turns > 20, "the encoding takes a hundred times as long as a turn"
