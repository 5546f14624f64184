"""The time that a long answer takes grows with its tokens, whatever they are."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models

from services.gateway.session.verdict_stream import Committed
from tests.gateway.http.answers import reader, scored, target
from tests.gateway.tiny import make_byte_fallback, make_byte_level

NUM_TOKENS = 1000


def make_words() -> Tokenizer:
    """Words, of which one is a replacement character and one is empty."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "\ufffd": 1, "": 2}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


ANSWERS = {
    "invalid bytes": (make_byte_level, "ÿ"),
    "characters that cross tokens": (make_byte_level, "©Ã"),
    "invalid byte tokens": (make_byte_fallback, "<0xFF>"),
    "special tokens": (make_byte_fallback, "</s>"),
    "replacement characters": (make_words, "\ufffd"),
    "empty words": (make_words, ""),
}


def seconds(tokenizer: Tokenizer, tokens: list[Committed]) -> float:
    """CPU time of this thread, the best of three."""
    times = []
    for _ in range(3):
        answer = reader(stop_ids=(), tokenizer=tokenizer)
        started = time.thread_time()
        for token in tokens:
            answer.feed([token])
        answer.flush()
        times.append(time.thread_time() - started)
        assert answer.num_tokens == len(tokens)
    return min(times)


@pytest.mark.parametrize("commit", [target, scored], ids=["plain", "logprobs"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_four_times_as_many_tokens_take_about_four_times_as_long(kind: str, commit: Callable[[int], Committed]) -> None:
    make, piece = ANSWERS[kind]
    tokenizer = make()
    token_id = tokenizer.token_to_id(piece)
    short, long = (seconds(tokenizer, [commit(token_id)] * num) for num in (NUM_TOKENS, 4 * NUM_TOKENS))
    assert long < 8 * short
