"""The digest of a vocabulary: equal exactly where every id means the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from shared.runtime.vocabulary import vocabulary_digest
from tests.gateway.tiny import make_byte_fallback, make_byte_level, make_tokenizer

ADDED = {"id": 2, "content": "<s>", "special": True}


def digest_of(folder: Path, **tokenizer: Any) -> str:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return vocabulary_digest(folder)


def test_what_is_no_token_does_not_count(tmp_path: Path) -> None:
    plain = digest_of(tmp_path, model={"vocab": {"a": 0, "b": 1}}, added_tokens=[ADDED])
    assert plain == digest_of(
        tmp_path,
        version="1.0",
        model={"type": "BPE", "merges": ["a b"], "vocab": {"b": 1, "a": 0}},
        added_tokens=[ADDED],
    )
    assert plain == digest_of(tmp_path, model={"vocab": [["a", -1.5], ["b", -2]]}, added_tokens=[ADDED])
    assert plain == digest_of(tmp_path, model={"vocab": {"a": 0, "b": 1, "<s>": 2}}, added_tokens=[ADDED])


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"vocab": {"a": 1, "b": 0}}, "added_tokens": [ADDED]},
        {"model": {"vocab": {"a": 0, "b": 1}}},
        {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [ADDED | {"content": "</s>"}]},
        {"model": {"vocab": {"a": 0, "b": 1, "c": 3}}, "added_tokens": [ADDED]},
    ],
    ids=["swapped", "less", "renamed", "more"],
)
def test_another_token_of_an_id_gives_another_digest(tmp_path: Path, other: dict[str, Any]) -> None:
    assert digest_of(tmp_path, **other) != digest_of(tmp_path, model={"vocab": {"a": 0, "b": 1}}, added_tokens=[ADDED])


@pytest.mark.parametrize("make", [make_tokenizer, make_byte_level, make_byte_fallback])
def test_the_tokens_are_those_of_the_library(tmp_path: Path, make: Any) -> None:
    tokenizer: Tokenizer = make()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = vocabulary_digest(tmp_path)
    assert found == digest_of(tmp_path, model={"vocab": tokenizer.get_vocab(with_added_tokens=True)})


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": {"vocab": 1}}', "\udcff"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        vocabulary_digest(tmp_path)
