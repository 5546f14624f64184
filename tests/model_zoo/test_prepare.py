"""Preparing a pair: once, whole, by one process at a time, and again when something has changed."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_zoo.manifest import read_manifest
from model_zoo.prepare import Notify, Recipe, prepare

ROOT = Path(__file__).parents[2]


class Kitchen:
    """Two recipes of a few bytes; `draft` is made from `target`. Counts what it builds."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.weights = b"weights"
        self.during_build: Callable[[], None] = lambda: None
        target = Recipe("target", 1, ("numpy",), self._build_target)
        draft = Recipe("draft", 1, ("numpy", "msgspec"), self._build_draft, needs="target")
        self.recipes = [target, draft]

    def _build_target(self, pair_folder: Path, part_folder: Path, notify: Notify) -> dict[str, str]:
        self.built.append("target")
        (part_folder / "weights").write_bytes(self.weights)
        self.during_build()
        (part_folder / "tokenizer").mkdir()
        (part_folder / "tokenizer" / "config").write_text("{}")
        return {"origin": "00ff"}

    def _build_draft(self, pair_folder: Path, part_folder: Path, notify: Notify) -> dict[str, str]:
        self.built.append("draft")
        (part_folder / "graph").write_bytes(b"graph of " + (pair_folder / "target" / "weights").read_bytes())
        return {}


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


def run(folder: Path, kitchen: Kitchen) -> list[str]:
    return prepare(folder, kitchen.recipes, lambda line: None)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_the_manifest_names_sources_versions_and_the_hash_of_each_file(tmp_path: Path, kitchen: Kitchen) -> None:
    assert run(tmp_path, kitchen) == ["target", "draft"]
    parts = read_manifest(tmp_path).parts
    assert parts["target"].sources == {"origin": "00ff"}
    assert parts["target"].files.keys() == {"weights", "tokenizer/config"}
    assert parts["target"].files["weights"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert parts["target"].files["weights"].size == 7
    assert parts["draft"].sources == {"target": parts["target"].digest()}
    assert parts["draft"].versions.keys() == {"numpy", "msgspec"}
    assert hidden(tmp_path) == [".lock"]


def test_a_second_run_builds_nothing(tmp_path: Path, kitchen: Kitchen) -> None:
    run(tmp_path, kitchen)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert run(tmp_path, kitchen) == []
    assert kitchen.built == ["target", "draft"]
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["changed", "removed", "unlisted"])
def test_a_damaged_part_is_built_again_and_what_was_made_from_it_is_kept(
    tmp_path: Path, kitchen: Kitchen, damage: str
) -> None:
    run(tmp_path, kitchen)
    weights = tmp_path / "target" / "weights"
    match damage:
        case "changed":
            weights.write_bytes(b"Weights")
        case "removed":
            weights.unlink()
        case "unlisted":
            weights.parent.rename(tmp_path / "elsewhere")
    assert run(tmp_path, kitchen) == ["target"]
    assert weights.read_bytes() == b"weights"
    assert run(tmp_path, kitchen) == []


def test_an_unreadable_manifest_means_building_anew(tmp_path: Path, kitchen: Kitchen) -> None:
    run(tmp_path, kitchen)
    (tmp_path / "manifest.json").write_text('{"parts": {"target": 1}}')
    assert run(tmp_path, kitchen) == ["target", "draft"]
    assert run(tmp_path, kitchen) == []


def test_another_target_makes_its_drafts_stale(tmp_path: Path, kitchen: Kitchen) -> None:
    run(tmp_path, kitchen)
    kitchen.weights = b"better weights"
    kitchen.recipes[0] = replace(kitchen.recipes[0], revision=2)
    assert run(tmp_path, kitchen) == ["target", "draft"]
    assert (tmp_path / "draft" / "graph").read_bytes() == b"graph of better weights"


def test_a_new_revision_that_gives_the_same_files_keeps_the_drafts(tmp_path: Path, kitchen: Kitchen) -> None:
    run(tmp_path, kitchen)
    kitchen.recipes[0] = replace(kitchen.recipes[0], revision=2)
    assert run(tmp_path, kitchen) == ["target"]
    assert run(tmp_path, kitchen) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_a_build_that_ends_early_leaves_nothing_and_the_next_run_succeeds(
    tmp_path: Path, kitchen: Kitchen, interruption: type[BaseException] | BaseException
) -> None:
    def interrupt() -> None:
        raise interruption

    kitchen.during_build = interrupt
    with pytest.raises((KeyboardInterrupt, OSError)):
        run(tmp_path, kitchen)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    kitchen.during_build = lambda: None
    assert run(tmp_path, kitchen) == ["target", "draft"]


def test_an_interrupted_rebuild_keeps_the_part_that_was_there(tmp_path: Path, kitchen: Kitchen) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    run(tmp_path, kitchen)
    kitchen.recipes[0] = replace(kitchen.recipes[0], revision=2)
    kitchen.during_build = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, kitchen)
    assert (tmp_path / "target" / "weights").read_bytes() == b"weights"


KILLED_WHILE_BUILDING = """
import os, signal, sys
from pathlib import Path
from model_zoo.prepare import Recipe, prepare

def build(pair_folder, part_folder, notify):
    (part_folder / "weights").write_bytes(b"wei")
    os.kill(os.getpid(), signal.SIGKILL)

prepare(Path(sys.argv[1]), [Recipe("target", 1, (), build)], print)
"""


def test_a_killed_run_leaves_no_part_and_the_next_run_cleans_up_and_succeeds(tmp_path: Path, kitchen: Kitchen) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_BUILDING, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    assert left[0].startswith(".building-")
    assert run(tmp_path, kitchen) == ["target", "draft"]
    assert hidden(tmp_path) == [".lock"]


def test_two_at_once_build_once(tmp_path: Path, kitchen: Kitchen) -> None:
    building, second_waits = threading.Event(), threading.Event()

    def hold_until_the_second_waits() -> None:
        building.set()
        assert second_waits.wait(timeout=30)

    kitchen.during_build = hold_until_the_second_waits
    first = threading.Thread(target=run, args=(tmp_path, kitchen))
    first.start()
    assert building.wait(timeout=30)
    lines: list[str] = []

    def notify(line: str) -> None:
        lines.append(line)
        second_waits.set()

    assert prepare(tmp_path, kitchen.recipes, notify) == []
    first.join(timeout=30)
    assert lines == ["waiting for another process that prepares the same models"]
    assert kitchen.built == ["target", "draft"]
