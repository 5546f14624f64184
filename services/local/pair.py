"""Which models a local system runs: the default pair, or a target and drafts of the user's own.

Invariant: a pair that is returned has a target folder, and a draft folder for each drafter; whether they fit each other
is for `python -m model_zoo check` to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "smollm2-135m"
DEFAULT_DRAFTS = ("int8", "int4")


class PairRefused(ValueError):
    """These models can't be run together, or are not there; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A target, and the draft of each drafter."""

    model_name: str  # under which clients ask for it
    target: Path
    drafts: tuple[Path, ...]
    is_default: bool = False  # `python -m model_zoo prepare` makes it where it is missing


def default_pair(models: Path, drafts: Sequence[str], num_drafters: int, model_name: str = "") -> ModelPair:
    """The default target in `models`; drafts: int8, int4, or a folder, in turn. Raises PairRefused."""
    folders = [models / f"draft-{draft}" if draft in DEFAULT_DRAFTS else _own_draft(draft) for draft in drafts]
    return ModelPair(model_name or DEFAULT_NAME, models / "target", _in_turn(folders, num_drafters), is_default=True)


def own_pair(target: Path, drafts: Sequence[str], num_drafters: int, model_name: str) -> ModelPair:
    """A target folder and draft folders, in turn; without a name that of the target's folder. Raises PairRefused."""
    for file in ("config.json", "tokenizer.json"):
        if not (target / file).is_file():
            raise PairRefused(f"{target / file} is missing: --target is the folder of a model with its tokenizer")
    if num_drafters and not drafts:
        raise PairRefused("--target needs its own drafts: name their folders with --draft, or take --drafters 0")
    if foreign := [draft for draft in drafts if draft in DEFAULT_DRAFTS]:
        raise PairRefused(f"--draft {foreign[0]} is a draft of the default target: name a folder")
    folder = target.resolve()
    name = model_name or (folder.parent.name if folder.name == "target" else folder.name)
    return ModelPair(name, folder, _in_turn([_own_draft(draft) for draft in drafts], num_drafters))


def _own_draft(draft: str) -> Path:
    folder = Path(draft)
    if not folder.is_dir():
        raise PairRefused(f"--draft {draft} is no folder")
    return folder.resolve()


def _in_turn(folders: Sequence[Path], num_drafters: int) -> tuple[Path, ...]:
    return tuple(itertools.islice(itertools.cycle(folders), num_drafters))
