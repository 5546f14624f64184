"""Markers that are special tokens: text for the parser that reads them, and nothing for anybody else."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer

from services.gateway.formats.parts import AnswerMessage
from services.gateway.formats.registry import ToolUse, choose_formats
from services.gateway.text.tokenizer import TargetTokenizer
from shared.protocol.messages import TokenIds
from tests.gateway.http.answers import order, scored
from tests.gateway.tiny import make_byte_fallback, make_byte_level

MARKERS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
FORMATS = choose_formats("hermes", "think", None)
CALL = '{"name": "f", "arguments": {"day": "é"}}'


def with_markers(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    return tokenizer


def written(tokenizer: Tokenizer) -> list[int]:
    """An answer in tokens: bytes, words and markers."""
    id_of = tokenizer.token_to_id
    single = [id_of(f"<0x{byte:02X}>") for byte in range(256)]
    if single[0] is None:
        decoded = {tokenizer.decode([token_id]): token_id for token_id in range(256)}
        single = [decoded.get(chr(byte)) for byte in range(128)]
        accent = [id_of("Ã"), id_of("©")]
    else:
        accent = [single[0xC3], single[0xA9]]
    spelt = [[single[ord(each)]] if each != "é" else accent for each in CALL]
    call = [token_id for token_ids in spelt for token_id in token_ids]
    return [id_of("<think>"), id_of("hi"), id_of("</think>"), id_of("hi"), id_of("<tool_call>"), *call,
            id_of("</tool_call>"), id_of("</s>")]  # fmt: skip


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_a_parser_reads_markers_that_are_special_tokens(make) -> None:
    tokenizer = with_markers(make())
    target, ids, use = TargetTokenizer(tokenizer, None, TokenIds()), written(tokenizer), ToolUse(frozenset("f"))
    answer = target.answer(order([]), (), FORMATS.parser(use, ""), FORMATS.markers(use))
    message, spans, tokens = AnswerMessage(), "", []
    for piece in [*(answer.feed([scored(token_id)]) for token_id in ids), answer.flush()]:
        message.add(piece.parts)
        spans += piece.text
        tokens += piece.tokens
    assert (message.reasoning, message.content, message.calls[0].arguments) == ("hi", "hi", '{"day": "é"}')
    assert spans == f"<think>hi</think>hi<tool_call>{CALL}</tool_call>"
    assert b"".join(token.chosen.data or b"" for token in tokens).decode() == spans
    assert (len(tokens), tokens[-1].chosen.data) == (len(ids), None)


@pytest.mark.parametrize("make", [make_byte_level, make_byte_fallback])
def test_without_tools_markers_of_calls_are_not_shown(make) -> None:
    tokenizer = with_markers(make())
    target, ids = TargetTokenizer(tokenizer, None, TokenIds()), written(tokenizer)
    for parser, markers, shown in (
        (None, frozenset(), f"hihi{CALL}"),
        (FORMATS.parser(None, ""), FORMATS.markers(None), f"<think>hi</think>hi{CALL}"),
    ):
        answer = target.answer(order([]), (), parser, markers)
        pieces = [*(answer.feed([scored(token_id)]) for token_id in ids), answer.flush()]
        assert "".join(piece.text for piece in pieces) == shown


def test_special_tokens_have_ids_and_the_end_of_a_prompt_has_them() -> None:
    tokenizer = with_markers(make_byte_level())
    target = TargetTokenizer(tokenizer, None, TokenIds())
    assert target.special_ids([*MARKERS, "hi"]) == {marker: tokenizer.token_to_id(marker) for marker in MARKERS}
    assert target.end_of([tokenizer.token_to_id("<think>"), tokenizer.token_to_id("Ċ")]) == "<think>\n"
