"""What README.md promises, done as it stands there: only addresses, ports and the path of the interpreter differ."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.local.nats_server import free_port

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
FATES = ("accepted", "late", "rejected", "discarded")


def blocks(language: str = "") -> list[str]:
    """The README's code blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for its_language, text in found if its_language == language]


def line(beginning: str) -> str:
    """The README's only code line that begins so."""
    found = [text for block in blocks() for text in block.splitlines() if text.startswith(beginning)]
    assert len(found) == 1, f"{len(found)} lines begin with {beginning!r}"
    return found[0]


@dataclass(frozen=True)
class Machine:
    """Where the commands run: a DSD home of its own with the models of all tests, and a free port."""

    home: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        given = {
            name: value for name, value in os.environ.items() if name == "DSD_SECURE" or not name.startswith("DSD_")
        }
        return given | {"DSD_HOME": str(self.home)}

    def placed(self, text: str) -> str:
        """The README's text with this machine's address."""
        return text.replace(ADDRESS, f"http://127.0.0.1:{self.port}")

    def run(self, command: list[str]) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dsd(self, beginning: str) -> str:
        """A `dsd` line of the README, run as a module: where tests run, the program need not be installed."""
        _, *arguments = shlex.split(line(f".venv/bin/{beginning}"))
        return self.run([sys.executable, "-m", "client", *arguments, "--url", f"http://127.0.0.1:{self.port}"])

    def make(self, command: str) -> str:
        """A `make` line of the README, in the environment that runs the tests instead of one that it would make."""
        words = shlex.split(command)
        assert words[0] == "make"
        given = ["-s", "-o", ".venv/local", f"BIN={Path(sys.executable).parent}", f"PORT={self.port}"]
        return self.run([*words, *given])


@pytest.fixture
def machine(default_models: Path, tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "models").symlink_to(default_models.parent)
    machine = Machine(tmp_path, free_port())
    yield machine
    machine.run([sys.executable, "-m", "services", "--stop"])  # says so when nothing runs


def test_make_up_serves_the_curl_line_and_the_openai_client_until_make_down(machine: Machine) -> None:
    assert shutil.which("curl"), "the README asks with curl: install it"
    curl = machine.placed(line("curl "))
    assert machine.make(line("make up")).splitlines() == [f"gateway at http://127.0.0.1:{machine.port}", curl]

    assert (machine.home / "run/nats/users.conf").exists() == (os.environ.get("DSD_SECURE") == "1")
    answer = json.loads(machine.run(["bash", "-c", curl]))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"

    assert "Paris" in machine.dsd("dsd ask")
    assert re.search(r"verifier-0 .*\n.*drafter-0 ", machine.dsd("dsd status"))

    (client,) = blocks("python")
    assert "Paris" in machine.run([sys.executable, "-c", machine.placed(client)])

    machine.make(line("make down"))
    assert subprocess.run(["bash", "-c", curl], capture_output=True).returncode != 0


def test_make_demo_streams_the_answer_and_ends_with_statistics(machine: Machine) -> None:
    printed = machine.make(line("make demo") + " PROMPT='What is \"2 + 2\", in $ and €?'")
    question, answer, table = re.fullmatch(r"> (.+?)\n\n(.+?)\n\n(.+)", printed, re.DOTALL).groups()  # type: ignore[union-attr]
    assert question == 'What is "2 + 2", in $ and €?'
    assert answer.strip()
    for word in ("tokens/s", "acceptance", "window", "verdicts", *FATES):
        assert word in table


def test_the_line_for_several_drafters_and_verifiers_answers(machine: Machine) -> None:
    words = shlex.split(line(".venv/bin/python -m services "))
    command = [sys.executable, *words[1:], "--port", str(machine.port), "--ask", "Say hello.", "--max-tokens", "8"]
    assert "verifier-" in machine.run(command)
    logs = {path.name for path in (machine.home / "run" / "logs").iterdir()}
    assert {"drafter-0.log", "drafter-1.log", "verifier-0.log", "verifier-1.log", "gateway.log"} <= logs
