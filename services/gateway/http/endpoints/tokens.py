"""POST /tokenize and /detokenize in vLLM's shapes: text to token ids and back, without a session (docs/api.md).

Invariant: /tokenize gives the ids that a generation for the same prompt or messages computes.
"""

from __future__ import annotations

import msgspec

from services.gateway.bodies.token_bodies import DetokenizeBody, TokenizeBody
from services.gateway.errors import bad_request
from services.gateway.http.parsing import parse
from services.gateway.http.request_builder import RequestBuilder, explained
from shared.protocol.messages import TokenIds


class TokenizeReply(msgspec.Struct, frozen=True):
    """token_strs: the tokens as the vocabulary has them, where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(msgspec.Struct, frozen=True):
    prompt: str


def tokenized(
    builder: RequestBuilder, raw: bytes, unknown: list[str] | None, max_model_len: int
) -> tuple[TokenizeReply, list[str]]:
    """The answer to a body, and the names of fields without effect. Slow for long texts: call it in a thread."""
    body = parse(TokenizeBody, raw, unknown)
    _check_model(builder, body.model)
    ids, ignored = _ids(builder, body)
    strs = [builder.tokenizer.piece(token_id) or "" for token_id in ids] if body.return_token_strs else None
    return TokenizeReply(len(ids), max_model_len, list(ids), strs), [*ignored, *(unknown or ())]


def detokenized(
    builder: RequestBuilder, raw: bytes, unknown: list[str] | None, max_model_len: int
) -> tuple[DetokenizeReply, list[str]]:
    """The text of a body's ids, special tokens included. Call it in a thread, too."""
    body = parse(DetokenizeBody, raw, unknown)
    _check_model(builder, body.model)
    for token_id in set(body.tokens):
        if builder.tokenizer.piece(token_id) is None:
            raise bad_request(f"tokens: the tokenizer has no token with id {token_id}", "tokens", "invalid_value")
    return DetokenizeReply(builder.tokenizer.decode(body.tokens, skip_special_tokens=False)), unknown or []


def _ids(builder: RequestBuilder, body: TokenizeBody) -> tuple[TokenIds, list[str]]:
    conversation = body.conversation
    if conversation is not None:
        with explained("messages"):
            known = builder.known(conversation)
            return builder.tokenizer.encode_chat(known), builder.tokenizer.unused(known)
    with explained("prompt"):
        special = body.add_special_tokens is not False
        return builder.tokenizer.encode_text(body.prompt or "", add_special_tokens=special), []


def _check_model(builder: RequestBuilder, name: str | None) -> None:
    if name is not None:
        builder.check_model(name)
