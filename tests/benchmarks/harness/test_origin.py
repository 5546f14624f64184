"""An origin holds the command in a form that works on any machine."""

from __future__ import annotations

import sys

import pytest

from benchmarks.harness.origin import Origin


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
