"""Pieces of an answer: whole characters, counted tokens, sources and logprobs, however verdicts cut the tokens."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.text.output_text import LEAST_LOGPROB, ScoredToken
from tests.gateway.http.answers import EOS, TOKENIZER, cut, ids_of, read, reader, scored, target, text_of


def bytes_of(tokens: list[ScoredToken]) -> bytes:
    return b"".join(token.chosen.data or b"" for token in tokens)


@given(st.text(max_size=40), st.integers(0, 1000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_comes_out_whole_however_its_tokens_are_cut(text: str, seed: int) -> None:
    ids = ids_of(text)
    pieces = read(reader(), cut([target(token_id) for token_id in ids], seed))
    assert text_of(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert not any(piece.text.endswith("\ufffd") for piece in pieces if "\ufffd" not in text)


@given(st.text(max_size=40), st.lists(st.text("ab é", min_size=1, max_size=3), max_size=2), st.integers(0, 1000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_counted_token_is_scored_once_with_its_true_bytes(text: str, stops: list[str], seed: int) -> None:
    ids = [*ids_of(text), EOS]
    answer = reader(stops)
    pieces = read(answer, cut([scored(token_id, -float(n)) for n, token_id in enumerate(ids)], seed))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.chosen.logprob for token in tokens] == [-float(n) for n in range(answer.num_tokens)]
    assert bytes_of(tokens).startswith(text_of(pieces).encode())
    if not answer.stopped:
        assert bytes_of(tokens).decode() == text_of(pieces) == text
    shown = 0
    for piece in pieces:  # no token comes before its text
        shown += len(piece.text)
        assert answer.stopped or all(token.offset <= shown for token in piece.tokens)


def test_tokens_of_one_character_come_with_it_and_name_their_bytes() -> None:
    ids = ids_of("a🚀")
    answer = reader()
    pieces = read(answer, [[scored(token_id)] for token_id in ids])
    assert [(piece.text, len(piece.tokens)) for piece in pieces if piece] == [("a", 1), ("🚀", len(ids) - 1)]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.offset for token in tokens] == [0] + [1] * (len(ids) - 1)
    assert bytes_of(tokens[1:]) == "🚀".encode()
    assert tokens[1].chosen.text.startswith("bytes:\\xf0")


def test_likeliest_tokens_are_named_and_no_logprob_is_infinite() -> None:
    (hello,) = ids_of(" the")[:1]
    (piece, _) = read(reader(), [[scored(hello, -math.inf, top=(EOS, hello))]])
    (token,) = piece.tokens
    assert token.chosen.logprob == LEAST_LOGPROB
    assert [(each.text, each.data, each.logprob) for each in token.top] == [
        ("<|im_end|>", None, -1.0),
        (token.chosen.text, token.chosen.data, -2.0),
    ]


def test_held_back_text_keeps_its_tokens_and_tokens_behind_a_stop_string_never_appear() -> None:
    ids = [token_id for character in "xSTOP!" for token_id in ids_of(character)]
    answer = reader(["STOP"])
    pieces = read(answer, [[scored(token_id)] for token_id in ids])
    assert [piece.text for piece in pieces if piece] == ["x", ""]
    assert [token.chosen.text for piece in pieces for token in piece.tokens] == ["x", "S", "T", "O", "P"]
    assert answer.num_tokens == 5


def test_the_texts_of_the_spans_are_the_piece_s_and_carry_their_token_s_source() -> None:
    ids = [token_id for character in "aSTx" for token_id in ids_of(character)]
    sources = ["accepted", "recovered", "bonus", "target"]
    tokens = [target(token_id, source) for token_id, source in zip(ids, sources, strict=True)]
    first, second, last = read(reader(["STOP"]), [tokens[:3], tokens[3:]])
    assert [(span.text, span.source) for span in first.spans] == [("a", "accepted")]
    assert [(span.text, span.source) for span in second.spans] == [("S", "recovered"), ("T", "bonus"), ("x", "target")]
    assert not last


def test_an_unfinished_character_becomes_a_replacement_character_at_the_end() -> None:
    pieces = read(reader(), [[scored(token_id) for token_id in ids_of("ab🚀")[:-1]]])
    assert [piece.text for piece in pieces] == ["ab", "\ufffd"]
    assert bytes_of(pieces[1].tokens) == "🚀".encode()[:-1]


def test_special_tokens_are_not_shown_and_the_end_of_sequence_counts_as_a_token() -> None:
    answer = reader()
    tokens = [target(token_id) for token_id in (1, *ids_of("hello"), EOS)]
    assert text_of(read(answer, [tokens])) == "hello"
    assert answer.num_tokens == 2 + len(ids_of("hello"))


def test_a_stop_id_that_is_an_ordinary_token_is_not_shown_either() -> None:
    (full_stop,) = ids_of(".")
    tokens = [target(token_id) for token_id in (*ids_of("hello"), full_stop)]
    assert text_of(read(reader(stop_ids=[full_stop]), [tokens])) == "hello"


def test_a_token_behind_an_unfinished_character_keeps_its_place() -> None:
    ids = [ids_of("🚀")[0], EOS]
    pieces = read(reader(), [[scored(token_id, -float(n)) for n, token_id in enumerate(ids)]])
    assert text_of(pieces) == "\ufffd"
    assert [token.chosen.logprob for piece in pieces for token in piece.tokens] == [0.0, -1.0]


def test_usage_counts_up_to_the_token_that_completes_the_stop_string() -> None:
    ids = ids_of("hello world, the quick brown fox")
    answer = reader(["wor"])
    assert text_of(read(answer, [[target(token_id) for token_id in ids]])) == "hello "
    assert answer.stopped
    seen = TOKENIZER.decode(ids[: answer.num_tokens])
    assert "wor" in seen
    assert "wor" not in TOKENIZER.decode(ids[: answer.num_tokens - 1])


def test_an_earlier_stop_string_beats_a_later_end_of_sequence() -> None:
    answer = reader(["wor"])
    answer.feed([target(token_id) for token_id in (*ids_of("hello world, the"), EOS)])
    assert answer.stopped
    assert answer.num_tokens < len(ids_of("hello world, the"))


def test_a_stop_string_complete_within_min_tokens_is_none() -> None:
    ids = [token_id for character in "abab!" for token_id in ids_of(character)]
    for min_tokens, shown in ((0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab!")):
        answer = reader(["ab"], min_tokens=min_tokens)
        assert text_of(read(answer, [[target(token_id)] for token_id in ids])) == shown, min_tokens
