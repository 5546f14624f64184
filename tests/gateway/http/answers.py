"""Committed tokens and readers of them, for tests of an answer's text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from services.gateway.session.generation import Generation
from services.gateway.session.verdict_stream import Committed, TokenSource
from services.gateway.text.detokenizer import detokenizer_of
from services.gateway.text.output_text import AnswerText, Piece
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol.messages import Sampling, TokenIds, TokenLogprobs
from tests.gateway.fakes import MODEL
from tests.gateway.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
EOS = 2


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def target(token_id: int, source: TokenSource = "target") -> Committed:
    """A token without logprobs."""
    return Committed(token_id, source, None)


def scored(token_id: int, logprob: float = -0.5, top: Sequence[int] = ()) -> Committed:
    """A token with logprobs; those of the likeliest fall by one each."""
    return Committed(token_id, "target", TokenLogprobs(logprob, TokenIds(top), [-1.0 - n for n in range(len(top))]))


def reader(
    stops: Iterable[str] = (),
    stop_ids: Iterable[int] = (EOS,),
    min_tokens: int = 0,
    tokenizer: Tokenizer = TOKENIZER,
    prompt_ids: Sequence[int] = (),
) -> AnswerText:
    token_bytes = TokenBytes(tokenizer)
    return AnswerText(detokenizer_of(token_bytes, prompt_ids), token_bytes, stops, stop_ids, min_tokens)


def order(prompt_ids: Sequence[int]) -> Generation:
    """A plain generation for a prompt."""
    return Generation("0" * 32, MODEL, TokenIds(prompt_ids), 64, Sampling(), TokenIds([EOS]), None)


def cut(items: Sequence[Committed], seed: int) -> list[Sequence[Committed]]:
    """The tokens in random non-empty batches."""
    rng = random.Random(seed)
    places = sorted({0, len(items), *(rng.randrange(len(items) + 1) for _ in range(len(items) // 2))})
    return [items[a:b] for a, b in pairwise(places)]


def read(answer: AnswerText, batches: Iterable[Iterable[Committed]]) -> list[Piece]:
    """All pieces, those that bring nothing included."""
    pieces = [answer.feed(batch) for batch in batches]
    return [*pieces, answer.flush()]


def text_of(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
