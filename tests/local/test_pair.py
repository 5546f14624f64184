"""Which models a local system runs, and under which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local.pair import PairRefused, default_pair, own_pair
from shared.runtime.home import DEFAULT_MODEL


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "family" / "target"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).touch()
    return folder


def test_a_pair_has_the_name_given_or_that_of_its_folder(target: Path) -> None:
    assert default_pair(target, ["int8"], 1).model_name == DEFAULT_MODEL
    assert default_pair(target, ["int8"], 1, "mine").model_name == "mine"
    assert own_pair(target, [], 0, "").model_name == "family"
    assert own_pair(target, [], 0, "mine").model_name == "mine"


def test_drafts_take_turns(target: Path) -> None:
    names = [draft.name for draft in default_pair(target, ["int8", "int8", "int4"], 4).drafts]
    assert names == ["draft-int8", "draft-int8", "draft-int4", "draft-int8"]


def test_a_distilled_draft_is_used_once_it_was_made(tmp_path: Path) -> None:
    with pytest.raises(PairRefused, match="make draft"):
        default_pair(tmp_path, ["distilled"], 1)
    (tmp_path / "draft-distilled").mkdir()
    assert default_pair(tmp_path, ["distilled"], 1).drafts == (tmp_path / "draft-distilled",)


def test_models_that_can_not_be_run_together_are_refused(target: Path) -> None:
    with pytest.raises(PairRefused, match="own drafts"):
        own_pair(target, [], 1, "")
    with pytest.raises(PairRefused, match="default target"):
        own_pair(target, ["int8"], 1, "")
    with pytest.raises(PairRefused, match="is not a folder"):
        own_pair(target, [str(target / "nothing")], 1, "")
    with pytest.raises(PairRefused, match=r"config\.json is missing"):
        own_pair(target.parent, [], 0, "")
