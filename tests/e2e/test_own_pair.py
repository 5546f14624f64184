"""A user's own pair of another family, by the commands of docs/models.md as they stand there: made, exported, checked,
served, asked. Only the gateway's port differs, and in the quick run the training is cut short."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from services.local.nats_server import free_port

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8080"
QUICK = " --steps 40"
LENGTH = 400  # of 512 tokens, the prompt's among them
QUESTION = "Grant of Patent License"


def commands() -> list[str]:
    """The lines of the code block under "A pair of your own"."""
    document = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    section = document.partition("## A pair of your own\n")[2]
    block = re.search(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block, "docs/models.md has no commands for a pair of one's own"
    return block[1].splitlines()


MAKE, EXPORT, CHECK, SERVE, ASK, STOP = commands()


@dataclass
class Shell:
    """Where a user types: a folder, a DSD home and a free port."""

    folder: Path
    port: int = field(default_factory=free_port)

    def run(self, line: str) -> str:
        """What a line prints to standard output; it must succeed."""
        own = {name: value for name, value in os.environ.items() if name == "DSD_SECURE" or not name.startswith("DSD_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = own | {"DSD_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), "PATH": path}
        line = line.replace(ADDRESS, f"http://127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def serve(self) -> str:
        return self.run(f"{SERVE} --port {self.port}")

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The gateway's answer, an error's body included, with its status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps({"model": "family"} | body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return {"status": response.status} | json.load(response)
        except HTTPError as error:
            return {"status": error.code} | json.load(error)

    def chat(self, speculation: str, temperature: float, **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        options = {"max_tokens": 120} | options
        dsd = {"speculation": speculation} | ({"window": 8} if speculation == "static" else {})
        options |= {"temperature": temperature, "seed": 7, "dsd": dsd}
        return self.post("/v1/chat/completions", messages=messages, **options)


def num_right(answer: dict[str, Any]) -> int:
    """Right guesses, in time or late."""
    return int(answer["dsd"]["accepted"] + answer["dsd"]["late"])


def check_texts(shell: Shell) -> int:
    """Speculation changes no text, greedy or sampled, and guesses are right; returns how many. The window is static:
    an adaptive one may pause beside so quick a target."""
    right = 0
    for temperature in (0.0, 0.8):
        length = {"max_tokens": LENGTH, "min_tokens": LENGTH}  # time for a draft beside so quick a target
        plain, guessed = (shell.chat(speculation, temperature, **length) for speculation in ("off", "static"))
        assert (plain["status"], guessed["status"]) == (200, 200)
        assert guessed["choices"][0] == plain["choices"][0]
        assert plain["usage"]["completion_tokens"] == LENGTH
        assert num_right(plain) == 0
        right += num_right(guessed)
    assert right > 0
    return right


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Where the pair is made with little training, and the draft exported."""
    shell = Shell(tmp_path_factory.mktemp("own_pair"))
    shell.run(MAKE + QUICK)
    shell.run(EXPORT)
    yield shell
    shell.run(STOP)


def test_the_documented_commands_serve_a_pair_of_another_family(shell: Shell) -> None:
    assert shell.run(CHECK).startswith("fits: all 1000 tokens are the same\n")
    assert '"model": "family"' in shell.serve()
    is_secured = (shell.folder / "home/run/nats/users.conf").exists()
    assert is_secured == (os.environ.get("DSD_SECURE") == "1")
    answer = json.loads(shell.run(ASK))
    assert answer["model"] == "family"
    assert answer["choices"][0]["message"]["content"]
    check_texts(shell)

    # Context length, template and end tokens are the model's own: it has 512 positions, and no system message.
    with urllib.request.urlopen(f"http://127.0.0.1:{shell.port}/v1/models", timeout=60) as response:
        (model,) = json.load(response)["data"]
    assert (model["id"], model["max_model_len"]) == ("family", 512)
    system = shell.post("/v1/chat/completions", messages=[{"role": "system", "content": "Be brief."}])
    assert system["status"] == 400
    assert "this model knows no system message" in system["error"]["message"]
    shell.run(STOP)


def test_a_target_without_a_chat_template_completes_texts_and_says_so_when_it_is_to_chat(shell: Shell) -> None:
    bare = Shell(shell.folder / "bare")
    shutil.copytree(shell.folder / "family", bare.folder / "family")
    (bare.folder / "family" / "target" / "chat_template.jinja").unlink()
    try:
        bare.serve()
        chat = bare.chat("adaptive", 0.0)
        assert chat["status"] == 400
        assert "this model has no chat template; use /v1/completions" in chat["error"]["message"]
        text = bare.post("/v1/completions", prompt="The License", max_tokens=8, temperature=0)
        assert text["status"] == 200
        assert text["choices"][0]["text"]
    finally:
        bare.run(STOP)


def test_a_pair_with_its_whole_training_guesses_well_and_ends_where_its_own_files_say(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for line in (MAKE, EXPORT, CHECK):
        shell.run(line)
    try:
        shell.serve()
        answer = json.loads(shell.run(ASK))
        assert answer["choices"][0]["finish_reason"] == "stop"
        num_judged = num_right(answer) + answer["dsd"]["rejected"]
        assert num_right(answer) > 0.6 * num_judged
        assert num_judged > 20, "this target may write faster than any draft guesses: then the pair pauses"
        check_texts(shell)
    finally:
        shell.run(STOP)


def test_a_draft_distilled_from_a_target_of_another_family_fits_and_changes_no_text(shell: Shell) -> None:
    distilled = Shell(shell.folder / "distilled")
    shutil.copytree(shell.folder / "family" / "target", distilled.folder / "family" / "target")
    options = "--layers 2 --vocabulary 512 --hours 0.01"
    distilled.run(f"python -m model_zoo distill --target family/target --out family/draft-int8 {options}")
    assert distilled.run(CHECK).startswith("fits: all 1000 tokens are the same\n")
    try:
        distilled.serve()
        check_texts(distilled)
    finally:
        distilled.run(STOP)
