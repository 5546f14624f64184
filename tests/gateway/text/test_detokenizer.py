"""Text from tokens: characters are never split, stop strings never shown, however the tokens are cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from services.gateway.text.detokenizer import MAX_HELD_TOKENS, StopScanner, detokenizer_of
from services.gateway.text.token_bytes import TokenBytes
from tests.gateway.http.answers import TOKENIZER, ids_of
from tests.gateway.tiny import make_byte_fallback, make_byte_level


def cut(items: str, seed: int) -> list[str]:
    """The text in random non-empty pieces."""
    rng = random.Random(seed)
    places = sorted({0, len(items), *(rng.randrange(len(items) + 1) for _ in range(len(items) // 2))})
    return [items[a:b] for a, b in pairwise(places)]


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> list[str]:
    """The text that each token completes, and the rest."""
    detokenizer = detokenizer_of(TokenBytes(tokenizer), prompt_ids)
    return [*(detokenizer.step(token_id) for token_id in ids), detokenizer.flush()]


def ids_of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    id_of = {TokenBytes(tokenizer).of(token_id): token_id for token_id in range(256)}
    return [id_of[bytes([byte])] for byte in data]


def test_an_emoji_across_tokens_appears_with_its_last_token() -> None:
    ids = ids_of("🚀")
    assert len(ids) > 2
    assert pieces_of(TOKENIZER, ids) == [""] * (len(ids) - 1) + ["🚀", ""]


DATA = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"a", *map(str.encode, "é€🚀"), b"\xff\xc3\xa9"]


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_tokens_become_the_text_that_the_tokenizer_makes_of_them_all(make: Callable[[], Tokenizer]) -> None:
    tokenizer, rng = make(), random.Random(11)
    parts = [ids_of_bytes(tokenizer, data) for data in DATA]
    if make is make_byte_fallback:
        parts = [[*part, 256] for part in parts]  # a run of byte tokens is either text as a whole or none of it
    parts += [[token_id] for token_id in range(256, tokenizer.get_vocab_size() + 1)]
    for _ in range(3000):
        ids = [token_id for _ in range(rng.randrange(1, 12)) for token_id in rng.choice(parts)]
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_characters_before_bytes_that_are_no_text_stay_in_a_run_of_byte_tokens() -> None:
    tokenizer = make_byte_fallback()
    cases = {
        b"\xc3\xa9\xff\xc3\xa9": "é\ufffd\ufffd\ufffd",
        b"\xff\x41": "\ufffd\ufffd",
        b"\x41\xe2\x82": "A\ufffd\ufffd",
    }
    for data, text in cases.items():
        assert "".join(pieces_of(tokenizer, [*data, 257])) == text + " day"


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_bytes_that_never_become_text_are_shown_at_once(make: Callable[[], Tokenizer]) -> None:
    invalid = ids_of_bytes(make(), b"\xff") * 5
    assert pieces_of(make(), invalid) == [*["\ufffd"] * 5, ""]


def test_tokens_that_all_end_inside_a_character_are_held_for_a_while_only() -> None:
    tokenizer = make_byte_level()
    ids = [*ids_of_bytes(tokenizer, b"\xc3"), *[tokenizer.token_to_id("©Ã")] * 1000]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == "é" * 1000 + "\ufffd"
    assert max(map(len, pieces)) <= MAX_HELD_TOKENS


def test_the_prompt_is_the_context_of_the_first_token() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁to": 0, "▁day": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert pieces_of(tokenizer, [1])[0] == "day"  # at the beginning of a text the space is not meant
    assert pieces_of(tokenizer, [1], [0])[0] == " day"


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
