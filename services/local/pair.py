"""The models of a local system: the default pair, or the user's own target and drafts.

Invariant: a pair has a target folder, and a draft folder for each drafter. `python -m model_zoo check` tells whether
they fit each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.runtime.home import DEFAULT_MODEL

DISTILLED = "distilled"
DEFAULT_DRAFTS = ("int8", "int4", DISTILLED)


class PairRefused(ValueError):
    """The models can't be run together or are missing; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A target and the draft of each drafter."""

    model_name: str  # the target's name in the API
    target: Path
    drafts: tuple[Path, ...]
    is_default: bool = False  # `python -m model_zoo prepare` makes it, but for a distilled draft


def default_pair(models: Path, drafts: Sequence[str], num_drafters: int, model_name: str = "") -> ModelPair:
    """The default target in `models`. drafts: int8, int4, distilled or folders; drafters take them in turn. Raises
    PairRefused."""
    if DISTILLED in drafts and not (models / f"draft-{DISTILLED}").is_dir():
        raise PairRefused("there is no distilled draft yet: `make draft` makes it, which takes about four hours")
    folders = [models / f"draft-{draft}" if draft in DEFAULT_DRAFTS else _own_draft(draft) for draft in drafts]
    return ModelPair(model_name or DEFAULT_MODEL, models / "target", _in_turn(folders, num_drafters), is_default=True)


def own_pair(target: Path, drafts: Sequence[str], num_drafters: int, model_name: str) -> ModelPair:
    """A target folder and draft folders, which drafters take in turn. Raises PairRefused.

    model_name: empty takes the name of the target's folder.
    """
    for file in ("config.json", "tokenizer.json"):
        if not (target / file).is_file():
            raise PairRefused(f"{target / file} is missing: --target must be the folder of a model with its tokenizer")
    if num_drafters and not drafts:
        raise PairRefused("--target needs its own drafts: name their folders with --draft, or set --drafters 0")
    if foreign := [draft for draft in drafts if draft in DEFAULT_DRAFTS]:
        raise PairRefused(f"--draft {foreign[0]} is a draft of the default target: name a folder")
    folder = target.resolve()
    name = model_name or (folder.parent.name if folder.name == "target" else folder.name)
    return ModelPair(name, folder, _in_turn([_own_draft(draft) for draft in drafts], num_drafters))


def _own_draft(draft: str) -> Path:
    folder = Path(draft)
    if not folder.is_dir():
        raise PairRefused(f"--draft {draft} is not a folder")
    return folder.resolve()


def _in_turn(folders: Sequence[Path], num_drafters: int) -> tuple[Path, ...]:
    return tuple(itertools.islice(itertools.cycle(folders), num_drafters))
