"""Whether a draft fits a target. Only token ids cross the network, so each must mean the same to both.

Invariant: in a pair that fits, both tokenizers have the same token for every id, and the draft has a row for each. Rows
beyond the tokenizer are padding and may differ. End tokens, chat template and tokenization are the target's only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenizers import Tokenizer
from transformers import AutoConfig

from model_zoo.errors import UnusableModel
from model_zoo.source import TEXT_FILES, locate, read_json, weights_sha256
from services.edge_drafter.draft_config import EXPORTED_CONFIG, GENAI_CONFIG, read_config
from shared.data.draft_card import CARD, read_card


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, from its files."""

    tokens: Mapping[int, str]  # of the tokenizer, by id
    vocab_size: int  # rows of the model
    max_context: int
    eos_token_ids: tuple[int, ...]


class VocabularyComparison(msgspec.Struct, frozen=True):
    """A draft's vocabulary compared with a target's."""

    agrees: bool
    verdict: str
    num_differing: int
    num_tokens: int  # of the target's tokenizer
    vocab_sizes: tuple[int, int]  # (draft, target), also below
    max_contexts: tuple[int, int]
    eos_token_ids: tuple[tuple[int, ...], tuple[int, ...]]
    made_for_target: bool | None = None  # whether the draft's card names the target's weights; None: not known


def read_draft(model: str) -> Vocabulary:
    """The vocabulary of an exported draft, or of a model (folder or hub id). Raises UnusableModel."""
    folder = Path(model)
    if not any((folder / name).is_file() for name in (EXPORTED_CONFIG, GENAI_CONFIG)):
        return read_model(model)
    try:
        config = read_config(folder)
    except (ValueError, OSError) as error:
        raise UnusableModel(str(error)) from error
    return Vocabulary(_tokens_of(folder), config.vocab_size, config.max_context, config.eos_token_ids)


def read_model(model: str) -> Vocabulary:
    """The vocabulary of a Hugging Face model, a folder or hub id. Raises UnusableModel."""
    folder = locate(model, TEXT_FILES)
    if "model_type" not in read_json(folder / "config.json"):
        raise UnusableModel(f"{folder} holds no model: it has no config.json with a model_type")
    try:
        text = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        vocab_size, max_context = int(text.vocab_size), int(text.max_position_embeddings)
    except (ValueError, AttributeError, TypeError) as error:
        raise UnusableModel(f"{folder / 'config.json'} lacks vocab_size or max_position_embeddings: {error}") from error
    eos = read_json(folder / "generation_config.json").get("eos_token_id")
    eos = text.eos_token_id if eos is None else eos
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return Vocabulary(_tokens_of(folder), vocab_size, max_context, tuple(ids))


def made_for(draft: str, target: str) -> bool | None:
    """Whether the draft's card (shared/data/draft_card.py) was written for the target's weights; None if one of the two
    is not in its folder. Raises UnusableModel."""
    card, weights = Path(draft) / CARD, Path(target)
    if not card.is_file() or not any(weights.glob("*.safetensors")):
        return None
    try:
        return read_card(card).target_sha256 == weights_sha256(weights)
    except ValueError as error:
        raise UnusableModel(str(error)) from error


def compare(draft: Vocabulary, target: Vocabulary) -> VocabularyComparison:
    """Compares every id of either tokenizer."""
    ids = sorted(draft.tokens.keys() | target.tokens.keys())
    differing = [i for i in ids if draft.tokens.get(i) != target.tokens.get(i) or i >= draft.vocab_size]
    return VocabularyComparison(
        agrees=not differing,
        verdict=_difference(differing, draft, target) if differing else f"all {len(target.tokens)} tokens are the same",
        num_differing=len(differing),
        num_tokens=len(target.tokens),
        vocab_sizes=(draft.vocab_size, target.vocab_size),
        max_contexts=(draft.max_context, target.max_context),
        eos_token_ids=(draft.eos_token_ids, target.eos_token_ids),
    )


def _difference(differing: list[int], draft: Vocabulary, target: Vocabulary) -> str:
    first = differing[0]
    ours, theirs = draft.tokens.get(first), target.tokens.get(first)
    if ours == theirs:
        return f"token id {first} ({ours!r}) has no row in the draft, which has {draft.vocab_size}"
    described = [
        f"{text!r} in the {side}" if text is not None else f"no token of the {side}"
        for text, side in ((ours, "draft"), (theirs, "target"))
    ]
    return f"{len(differing)} tokens differ, first id {first}: {described[0]}, {described[1]}"


def _tokens_of(folder: Path) -> dict[int, str]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnusableModel(f"{path} is missing: the vocabularies can't be compared")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise UnusableModel(f"{path} is not a tokenizer: {error}") from error
    return {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
