"""Builds an image without a container engine: every stage in a folder of its own, by the steps as they are parsed.

Invariant: a stage has the files that its steps bring and no others; a path of the image stands for that path under the
stage's folder; `python` and `pip` of the base image are those of a clean virtual environment. Commands see the stage's
environment, and beside it only how pip is told here where packages are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.images import context
from tests.images.dockerfile import Dockerfile, Step, expanded

ROOT = Path(__file__).parents[2]
IGNORED = context.patterns((ROOT / ".dockerignore").read_text(encoding="utf-8"))
SYSTEM_PATH = "/usr/bin:/bin"
ABSOLUTE = re.compile(r"(?<![\w./])/(?=\w)")  # the beginning of a path, not the slashes of a URL
OF_PIP = re.compile(r"PIP_|HOME$|SSL_|REQUESTS_|(?i:https?_proxy$|no_proxy$)")


@dataclass(slots=True)
class Image:
    """What a stage has become, or an image when it was the last one."""

    root: Path
    env: dict[str, str]
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def path(self, place: str) -> Path:
        """Where a place in the image is here."""
        return self.root / PurePosixPath(self.workdir, place).relative_to("/")

    def placed(self, text: str) -> str:
        """A text of the image with its absolute paths as they are here."""
        return ABSOLUTE.sub(f"{self.root}/", text)


def build(dockerfile: Dockerfile, python: Path, folder: Path) -> Image:
    """Replays all stages; `python` is the virtual environment that stands for the base image."""
    done: dict[str, Image] = {}
    for number, stage in enumerate(dockerfile.stages):
        image = Image(folder / str(number), {"PATH": f"{python / 'bin'}:{SYSTEM_PATH}", "LANG": "C.UTF-8"})
        image.path("/tmp").mkdir(parents=True)  # every base has it
        arguments: dict[str, str] = {}
        for step in stage.steps:
            _take(step, image, arguments, done)
        done[stage.name] = image
    return image


def _take(step: Step, image: Image, arguments: dict[str, str], done: dict[str, Image]) -> None:
    match step.verb:
        case "ARG":
            arguments.update({name: value for name, value in step.pairs.items() if value})
        case "ENV":
            image.env |= {name: expanded(image.placed(value), image.env) for name, value in step.pairs.items()}
        case "WORKDIR":
            image.workdir = str(PurePosixPath(image.workdir, *step.words))
            image.path(".").mkdir(parents=True)
        case "COPY" if step.origin:
            _copy_from(done[step.origin], image, *step.words)
        case "COPY":
            _copy(image, *step.words)
        case "RUN":
            _run(image.placed(step.text), image, arguments)
        case "ENTRYPOINT":
            image.entrypoint = step.argv
        case "CMD":
            image.command = step.argv
        case "EXPOSE" | "LABEL" | "USER":
            pass  # nothing to build; test_dockerfiles.py looks at them


def _run(command: str, image: Image, arguments: dict[str, str]) -> None:
    env = {name: value for name, value in os.environ.items() if OF_PIP.match(name)} | arguments | image.env
    done = subprocess.run(["/bin/sh", "-c", command], cwd=image.path("."), env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def _copy(image: Image, *words: str) -> None:
    """Folders by what they hold, files by their name where the place ends in a slash."""
    *sources, place = words
    for source in sources:
        for file in context.files(ROOT, source, IGNORED):
            inside = (
                file.relative_to(source) if file != PurePosixPath(source) else file.name if place[-1] == "/" else ""
            )
            target = image.path(place) / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target)


def _copy_from(stage: Image, image: Image, source: str, place: str) -> None:
    shutil.copytree(stage.path(source), image.path(place), symlinks=True, copy_function=os.link)
