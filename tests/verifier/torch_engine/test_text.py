"""The committed text of a context, as two threads see it."""

from __future__ import annotations

import random

from services.cloud_verifier.torch_engine.text import Text


def test_a_text_is_what_was_written_and_no_array_that_was_read_ever_changes() -> None:
    rng = random.Random(3)
    for _ in range(200):
        expected = [rng.randrange(3) for _ in range(rng.randrange(8))]
        text, seen = Text(expected, 64), []
        for _ in range(30):
            seen.append((text.ids, text.ids.tolist()))
            start = rng.randrange(len(expected) + 1)
            new = [rng.randrange(3) for _ in range(rng.randrange(1, 6))][: 64 - start]
            is_end = rng.random() < 0.5
            expected = [*expected[:start], *new, *([] if is_end else expected[start + len(new) :])]
            text.write(start, new, is_end=is_end)
            assert text.ids.tolist() == expected
        assert all(array.tolist() == tokens for array, tokens in seen)


def test_a_token_is_written_without_a_copy_of_the_text() -> None:
    text = Text(range(100), 200)
    before = text.ids
    for token_id in range(100, 200):
        text.write(text.ids.size - 1, [token_id - 1, token_id], is_end=True)
    assert text.ids.tolist() == list(range(200))
    assert text.ids.base is before.base
