"""A Dockerfile as tests read it: its stages, and the steps of each.

Invariant: what is not understood (a here-document, a parser directive, an unknown instruction) raises ValueError
instead of being read as something else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

VERBS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "WORKDIR"}


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: what stands behind its verb, on one line."""

    verb: str
    text: str

    @property
    def words(self) -> list[str]:
        """Without flags and quotes."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def origin(self) -> str:
        """The stage that a COPY takes from, "" for the build's context; raises ValueError for any other flag."""
        flags = [word for word in shlex.split(self.text) if word.startswith("--")]
        if len(flags) > 1 or not all(flag.startswith("--from=") for flag in flags):
            raise ValueError(f"flags not understood: {self}")
        return flags[0].removeprefix("--from=") if flags else ""

    @property
    def pairs(self) -> dict[str, str]:
        """name=value of ENV, LABEL and ARG; "" where an argument has no default."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}

    @property
    def argv(self) -> list[str]:
        """The words of the exec form; raises ValueError for the shell form."""
        try:
            return msgspec.json.decode(self.text, type=list[str])
        except msgspec.DecodeError as error:
            raise ValueError(f"not the exec form: {self}") from error


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next; `base` has its arguments filled in."""

    base: str
    name: str
    steps: tuple[Step, ...]

    def of(self, verb: str) -> list[Step]:
        return [step for step in self.steps if step.verb == verb]

    @property
    def env(self) -> dict[str, str]:
        """What it sets in the environment, as it stands there."""
        return {name: value for step in self.of("ENV") for name, value in step.pairs.items()}


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """All stages; the last one is the image."""

    stages: tuple[Stage, ...]

    @property
    def image(self) -> Stage:
        return self.stages[-1]

    def of(self, verb: str) -> list[Step]:
        return [step for stage in self.stages for step in stage.of(verb)]


def read(text: str) -> Dockerfile:
    """The stages of a Dockerfile, with the defaults of its arguments; raises ValueError."""
    arguments: dict[str, str] = {}
    bases: list[tuple[str, str]] = []
    steps: list[list[Step]] = []
    for step in _steps(text):
        if step.verb == "FROM":
            base, *name = step.words
            bases.append((expanded(base, arguments), name[-1] if name else ""))
            steps.append([])
        elif steps:
            steps[-1].append(step)
        else:
            arguments |= step.pairs
    return Dockerfile(tuple(Stage(*base, tuple(own)) for base, own in zip(bases, steps, strict=True)))


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """With $NAME and ${NAME} filled in; unknown ones are empty, as in an engine."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], ""), text)


def dockerfile(path: Path) -> Dockerfile:
    return read(path.read_text(encoding="utf-8"))


def _steps(text: str) -> Iterator[Step]:
    if re.search(r"^\s*#\s*(escape|syntax|check)\s*=", text, re.MULTILINE):
        raise ValueError("parser directives are not understood")
    code = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\\[ \t]*\n\s*", "", code).splitlines():
        verb, _, rest = line.strip().partition(" ")
        if verb not in VERBS or "<<" in rest:
            raise ValueError(f"not understood: {line}")
        yield Step(verb, rest.strip())
