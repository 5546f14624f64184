"""An origin holds the command in a form that works on any machine, and the commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.origin import Origin, commit_of


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rounds", "4"], "--rounds 4"),
        (["--folder", "/home/me/out", "--rounds", "4"], "--rounds 4"),
        (["--rounds", "4", "--folder=/home/me/out"], "--rounds 4"),
        (["--prompts", "/home/me/gsm8k.jsonl"], "--prompts gsm8k.jsonl"),
        (["--prompts=/home/me/gsm8k.jsonl", "--quick"], "--prompts=gsm8k.jsonl --quick"),
        (["--prompts=/home/me/a=b/x.jsonl"], "--prompts=x.jsonl"),
        (["--standin-profile", "profiles/70b-edge.json"], "--standin-profile profiles/70b-edge.json"),
    ],
)
def test_a_command_holds_no_path_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py", *arguments])
    assert Origin.here("benchmarks.policies").command == f"python -m benchmarks.policies {expected}"


def test_the_commit_is_that_of_the_working_tree_and_tells_of_changes(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
        return subprocess.run(["git", "-C", str(tmp_path), *named], check=True, capture_output=True, text=True).stdout

    git("init")
    (tmp_path / "docs" / "reports").mkdir(parents=True)
    report = tmp_path / "docs" / "reports" / "report.md"
    for path in (tmp_path / "a", report):
        path.write_text("1")
    git("add", "a", "docs")
    git("commit", "-m", "one")
    commit = commit_of(tmp_path)
    assert commit
    assert git("rev-parse", "HEAD").startswith(commit)
    report.write_text("a benchmark writes it")
    assert commit_of(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path).endswith("-dirty")
