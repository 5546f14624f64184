"""Text from tokens: characters are never split, stop strings never shown, however the tokens are cut."""

from __future__ import annotations

import random
import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.gateway.text.detokenizer import Detokenizer, StopScanner
from tests.gateway.http.answers import TOKENIZER, ids_of


def cut(items: str, seed: int) -> list[str]:
    """The text in random non-empty pieces."""
    rng = random.Random(seed)
    places = sorted({0, len(items), *(rng.randrange(len(items) + 1) for _ in range(len(items) // 2))})
    return [items[a:b] for a, b in pairwise(places)]


def test_an_emoji_across_tokens_appears_with_its_last_token() -> None:
    ids = ids_of("🚀")
    assert len(ids) > 2
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.step(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["🚀"]


def test_bytes_that_are_no_text_never_raise_with_a_byte_fallback_tokenizer() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {chr(97 + n): 256 + n for n in range(26)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rng = random.Random(5)
    for _ in range(2000):
        ids = [rng.randrange(len(vocabulary)) for _ in range(20)]
        detokenizer = Detokenizer(tokenizer)
        text = "".join([*(detokenizer.step(token_id) for token_id in ids), detokenizer.flush()])
        assert sum(character in string.ascii_lowercase for character in text) >= sum(token_id > 255 for token_id in ids)


def test_the_prompt_is_the_context_of_the_first_token() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁to": 0, "▁day": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert Detokenizer(tokenizer).step(1) == "day"  # at the beginning of a text the space is not meant
    assert Detokenizer(tokenizer, [0]).step(1) == " day"


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        (["stop"], "go on and stop here", "go on and ", "stop"),
        (["stop"], "st sto stopp", "st sto ", "stop"),
        (["aab"], "aaab", "a", "aab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),  # "bc" is complete first
        (["b", "ab"], "xab", "x", "ab"),  # complete at once: the longer one
        (["\n\n"], "one\ntwo\n\nthree", "one\ntwo", "\n\n"),
        (["é"], "caf\u00e9!", "caf", "é"),
        (["zz"], "never", "never", None),
    ],
)
def test_the_stop_string_completed_first_ends_the_text(
    stops: list[str], text: str, shown: str, found: str | None
) -> None:
    whole, single = StopScanner(stops), StopScanner(stops)
    assert whole.feed(text) + whole.flush() == shown
    assert "".join(single.feed(character) for character in text) + single.flush() == shown
    assert whole.found == single.found == found


def test_text_that_may_become_a_stop_string_is_held_back_until_it_can_not() -> None:
    scanner = StopScanner(["STOP"])
    assert [scanner.feed(part) for part in ["a S", "T", "O", "x", "S"]] == ["a ", "", "", "STOx", ""]
    assert scanner.flush() == "S"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(0, 1000))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_stopping_does_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], seed: int) -> None:
    whole, pieces = StopScanner(stops), StopScanner(stops)
    expected = whole.feed(text) + whole.flush()
    assert "".join(pieces.feed(part) for part in cut(text, seed)) + pieces.flush() == expected
    assert pieces.found == whole.found
    assert not any(stop in expected for stop in stops)


@pytest.mark.parametrize(
    ("stops", "unscanned", "scanned", "shown"),
    [
        (["ab"], "xabx", "yab", "xabxy"),  # complete too early: no stop string
        (["ab"], "xa", "b", "x"),  # begun early, completed later
        (["abc", "b"], "ab", "x", "abx"),
    ],
)
def test_no_stop_string_is_completed_where_none_may_be(
    stops: list[str], unscanned: str, scanned: str, shown: str
) -> None:
    scanner = StopScanner(stops)
    assert scanner.feed(unscanned, may_stop=False) + scanner.feed(scanned) + scanner.flush() == shown
