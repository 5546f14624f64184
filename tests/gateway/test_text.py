"""Text from tokens: characters are never split, stop strings never shown, however the tokens are cut."""

from __future__ import annotations

import random
import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.gateway.text import AnswerText, Detokenizer, StopScanner
from tests.gateway.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
EOS = 2


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def cut(items: list[int], seed: int) -> list[list[int]]:
    """The items in random non-empty pieces."""
    rng = random.Random(seed)
    places = sorted({0, len(items), *(rng.randrange(len(items) + 1) for _ in range(len(items) // 2))})
    return [items[a:b] for a, b in pairwise(places)]


def read(answer: AnswerText, batches: list[list[int]]) -> list[str]:
    pieces = [answer.feed(batch) for batch in batches]
    return [*pieces, answer.flush()]


@given(st.text(max_size=40), st.integers(0, 1000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_comes_out_whole_however_its_tokens_are_cut(text: str, seed: int) -> None:
    ids = ids_of(text)
    pieces = read(AnswerText(Detokenizer(TOKENIZER), (), [EOS]), cut(ids, seed))
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert not any(piece.endswith("\ufffd") for piece in pieces if "\ufffd" not in text)


def test_an_emoji_across_tokens_appears_with_its_last_token() -> None:
    ids = ids_of("🚀")
    assert len(ids) > 2
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.step(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["🚀"]


def test_an_unfinished_character_becomes_a_replacement_character_at_the_end() -> None:
    answer = AnswerText(Detokenizer(TOKENIZER), (), [EOS])
    assert read(answer, [ids_of("ab🚀")[:-1]]) == ["ab", "\ufffd"]


def test_special_tokens_are_not_shown_and_the_end_of_sequence_counts_as_a_token() -> None:
    answer = AnswerText(Detokenizer(TOKENIZER), (), [EOS])
    assert "".join(read(answer, [[1, *ids_of("hello"), EOS]])) == "hello"
    assert answer.num_tokens == 2 + len(ids_of("hello"))


def test_a_stop_id_that_is_an_ordinary_token_is_not_shown_either() -> None:
    (full_stop,) = ids_of(".")
    answer = AnswerText(Detokenizer(TOKENIZER), (), [full_stop])
    assert "".join(read(answer, [[*ids_of("hello"), full_stop]])) == "hello"


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
    parts = cut([ord(character) for character in text], seed)
    assert "".join(pieces.feed("".join(map(chr, part))) for part in parts) + pieces.flush() == expected
    assert pieces.found == whole.found
    assert not any(stop in expected for stop in stops)


def test_usage_counts_up_to_the_token_that_completes_the_stop_string() -> None:
    ids = ids_of("hello world, the quick brown fox")
    answer = AnswerText(Detokenizer(TOKENIZER), ["wor"], [EOS])
    assert answer.feed(ids) + answer.flush() == "hello "
    assert answer.stopped
    seen = TOKENIZER.decode(ids[: answer.num_tokens])
    assert "wor" in seen
    assert "wor" not in TOKENIZER.decode(ids[: answer.num_tokens - 1])


def test_an_earlier_stop_string_beats_a_later_end_of_sequence() -> None:
    answer = AnswerText(Detokenizer(TOKENIZER), ["wor"], [EOS])
    answer.feed([*ids_of("hello world, the"), EOS])
    assert answer.stopped
    assert answer.num_tokens < len(ids_of("hello world, the"))
