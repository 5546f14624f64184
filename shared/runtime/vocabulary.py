"""A digest of a model's vocabulary. Only token ids cross the network, so each must mean the same to both sides.

Invariant: two tokenizer.json with the same token for every id have the same digest, whatever else they hold.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

TOKENIZER = "tokenizer.json"


class _Added(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    """vocab: ids by token, or tokens with their scores in the order of ids (Unigram)."""

    vocab: dict[str, int] | list[tuple[str, float]]


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


def vocabulary_digest(folder: Path) -> str:
    """SHA-256, in hexadecimal, of the tokens of a model's folder and their ids. Raises ValueError naming the file."""
    path = folder / TOKENIZER
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    return hashlib.sha256(msgspec.json.encode(sorted(_tokens(tokenizer).items()))).hexdigest()


def _tokens(tokenizer: _Tokenizer) -> dict[int, str]:
    """The token of each id."""
    vocab = tokenizer.model.vocab
    pairs = vocab.items() if isinstance(vocab, dict) else ((token, at) for at, (token, _) in enumerate(vocab))
    tokens = {token_id: token for token, token_id in pairs}
    return tokens | {added.id: added.content for added in tokenizer.added_tokens}
