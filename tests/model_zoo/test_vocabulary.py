"""Comparing the vocabularies of a draft and a target: what fits, what doesn't, and which token is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_zoo.errors import UnusableModel
from model_zoo.vocabulary import Vocabulary, compare, read_draft, read_model
from tests.gateway.tiny import make_folder, make_tokenizer

ROOT = Path(__file__).parents[2]
NUM_TOKENS = make_tokenizer().get_vocab_size(with_added_tokens=True)


def target_folder(folder: Path, vocab_size: int = NUM_TOKENS) -> Path:
    """A target but for its weights."""
    make_folder(folder)
    facts = {"model_type": "gpt2", "vocab_size": vocab_size, "n_positions": 128, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def draft_folder(folder: Path, vocab_size: int = NUM_TOKENS) -> Path:
    """An exported draft whose graph nobody reads."""
    make_folder(folder)
    config: dict[str, Any] = {"file": "model.onnx", "vocab_size": vocab_size, "max_context": 64}
    config |= {"eos_token_ids": [2], "ids": "ids", "logits": "logits", "kv": [["past_key_0", "new_key_0"]]}
    (folder / "draft_config.json").write_text(json.dumps(config))
    (folder / "model.onnx").touch()
    return folder


def with_token(folder: Path, token_id: int, text: str) -> Path:
    """The folder's tokenizer with another text under one id."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    old = next(token for token, other in vocabulary.items() if other == token_id)
    content["model"]["vocab"] = {text if token == old else token: other for token, other in vocabulary.items()}
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def check(draft: Path, target: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "model_zoo", "check", "--draft", str(draft), "--target", str(target), *flags]
    return subprocess.run(argv, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


def test_equal_vocabularies_fit_and_the_rest_is_shown(tmp_path: Path) -> None:
    done = check(draft_folder(tmp_path / "draft"), target_folder(tmp_path / "target"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"fits: all {NUM_TOKENS} tokens are the same",
        f"  vocab sizes: {NUM_TOKENS} in the draft, {NUM_TOKENS} in the target",
        "  max contexts: 64 in the draft, 128 in the target",
        "  eos token ids: (2,) in the draft, (2,) in the target",
    ]


@pytest.mark.parametrize(("draft_rows", "target_rows"), [(0, 64), (64, 0), (7, 64)])
def test_rows_beyond_the_tokenizer_are_padding_and_may_differ(
    tmp_path: Path, draft_rows: int, target_rows: int
) -> None:
    draft = read_draft(str(draft_folder(tmp_path / "draft", NUM_TOKENS + draft_rows)))
    target = read_model(str(target_folder(tmp_path / "target", NUM_TOKENS + target_rows)))
    comparison = compare(draft, target)
    assert comparison.agrees
    assert comparison.vocab_sizes == (NUM_TOKENS + draft_rows, NUM_TOKENS + target_rows)


def test_the_first_differing_token_is_shown_with_both_texts(tmp_path: Path) -> None:
    draft = with_token(with_token(draft_folder(tmp_path / "draft"), 270, "there"), 261, "here")
    done = check(draft, target_folder(tmp_path / "target"))
    assert done.returncode == 1
    theirs = make_tokenizer().id_to_token(261)
    assert done.stdout.splitlines()[0] == (
        f"does not fit: 2 tokens differ, first id 261: 'here' in the draft, {theirs!r} in the target"
    )


def test_two_tokens_that_changed_places_differ(tmp_path: Path) -> None:
    tokens = {0: "a", 1: "b", 2: "c"}
    swapped = {0: "a", 1: "c", 2: "b"}
    comparison = compare(Vocabulary(tokens, 3, 8, ()), Vocabulary(swapped, 3, 8, ()))
    assert not comparison.agrees
    assert comparison.verdict == "2 tokens differ, first id 1: 'b' in the draft, 'c' in the target"


def test_a_token_that_one_tokenizer_lacks_differs() -> None:
    more, fewer = Vocabulary({0: "a", 1: "b"}, 4, 8, ()), Vocabulary({0: "a"}, 4, 8, ())
    assert compare(more, fewer).verdict == "1 tokens differ, first id 1: 'b' in the draft, no token of the target"
    assert compare(fewer, more).verdict == "1 tokens differ, first id 1: no token of the draft, 'b' in the target"


def test_a_draft_without_a_row_for_a_token_does_not_fit() -> None:
    tokens = {0: "a", 1: "b", 2: "c"}
    comparison = compare(Vocabulary(tokens, 2, 8, ()), Vocabulary(tokens, 3, 8, ()))
    assert not comparison.agrees
    assert comparison.verdict == "token id 2 ('c') has no row in the draft, which has 2"


def test_a_model_that_is_to_become_a_draft_is_compared_as_well(tmp_path: Path) -> None:
    draft, target = target_folder(tmp_path / "draft"), target_folder(tmp_path / "target")
    assert compare(read_draft(str(draft)), read_model(str(target))).agrees


def test_json_holds_all_of_it_and_the_status_stays(tmp_path: Path) -> None:
    done = check(
        with_token(draft_folder(tmp_path / "draft"), 261, "here"), target_folder(tmp_path / "target"), "--json"
    )
    assert done.returncode == 1
    content = json.loads(done.stdout)
    assert (content["agrees"], content["num_differing"], content["max_contexts"]) == (False, 1, [64, 128])


def test_end_tokens_come_from_the_generation_configuration_else_from_the_configuration(tmp_path: Path) -> None:
    folder = target_folder(tmp_path / "target")
    assert read_model(str(folder)).eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert read_model(str(folder)).eos_token_ids == (0,)
    (folder / "generation_config.json").unlink()
    assert read_model(str(folder)).eos_token_ids == (0,)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx"])
def test_a_file_that_the_draft_lacks_is_named(tmp_path: Path, name: str) -> None:
    draft = draft_folder(tmp_path / "draft")
    (draft / name).unlink()
    with pytest.raises(UnusableModel, match=name):
        read_draft(str(draft))


def test_a_missing_folder_is_told_in_one_line_with_status_1(tmp_path: Path) -> None:
    done = check(tmp_path / "nothing", target_folder(tmp_path / "target"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"check failed: there is no folder {tmp_path / 'nothing'}\n"


def test_the_default_drafts_fit_their_target(default_models: Path) -> None:
    target = read_model(str(default_models / "target"))
    for name in ("draft-int8", "draft-int4"):
        assert compare(read_draft(str(default_models / name)), target).agrees
