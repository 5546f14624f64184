"""Cells: simulations that are parts of a larger question. Each is one scenario, made of a file and some settings.

Invariant: a cell's key is made of everything that its result depends on, so equal cells have equal keys, and what was
changed has another one. A bad setting is told in one line that names the file and the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from awc.policies.static import StaticPolicy
from awc.policy import WindowPolicy
from dsd_sim.scenario.scenario import Scenario, scenario_of, told_error
from dsd_sim.scenario.table import BadScenario, Part

ROOT = Path(__file__).parents[2]
PACKAGE = "dsd_sim"
# Its files that results don't depend on.
SHOWING = {
    "__main__.py", "roofline/cli.py", "roofline/roofline.py",
    *(f"studies/{name}.py" for name in (
        "cli", "compare", "plan", "plan_cli", "plan_plot", "plots", "sweep", "tables", "trace",
    )),
}  # fmt: skip
STATIC = {"policy.py", "policies/static.py"}  # of awc: all that a run with one choice throughout depends on
FILE = "file"  # how keys end whose values are files of a scenario: file, profile, draft_profile

Kind = TypeVar("Kind", bound=Part)


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation. `path`: of its scenario's file; `told`: what was set in it, for messages. A `policy` stands in
    for the one that the scenario names, and its reports are summed up even where it is static."""

    scenario: Scenario
    path: Path
    told: str
    key: str
    policy: WindowPolicy | None = None


def cell_of(content: dict[str, Any], path: Path, settings: Mapping[str, Any]) -> Cell:
    """The scenario of a file's content with other values at dotted keys. Raises BadScenario."""
    told = told_settings(settings)
    try:
        for key, value in settings.items():
            content = _changed(content, key, key.split("."), value)
        scenario = scenario_of(content, path)
        return Cell(scenario, path, told, key_of(scenario, path.parent))
    except BadScenario as error:
        raise BadScenario(complaint(path, error, told)) from error


def complaint(path: Path, error: Exception, told: str = "") -> str:
    """One line that names the file, and what was set in it."""
    message = " ".join(str(error).split())
    return (message if str(path) in message else f"{path}: {message}") + (f" (with {told})" if told else "")


def part_of(kind: type[Kind], content: Any, path: Path, place: str = "") -> Kind:
    """A checked table; `path` and `place`: where it stands, for messages. Raises BadScenario."""
    try:
        return kind.model_validate_json(json.dumps(content, default=str))  # lists are tuples there
    except ValidationError as error:
        raise BadScenario(f"{path}: {told_error(error, content, place)}") from error


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_of(key: str, value: Any) -> dict[str, Any]:
    """By dotted keys. A table stands for the keys in it, unless it has a `kind`: that one is set as a whole."""
    if not isinstance(value, dict) or "kind" in value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= settings_of(f"{key}.{name}", inner)
    return found


def told_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {told(value)}" for key, value in settings.items())


def told(value: Any) -> str:
    """As it might stand in a table: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _changed(place: Any, key: str, steps: Sequence[str], value: Any) -> Any:
    """A copy of the place with the value at the end of the steps. Tables that are missing on the way are made."""
    if not steps:
        return value
    first, rest = steps[0], steps[1:]
    if not isinstance(place, list):
        table = place if isinstance(place, dict) else {}
        return table | {first: _changed(table.get(first), key, rest, value)}
    if first != "*" and not (first.isdecimal() and int(first) < len(place)):
        raise BadScenario(f"{key}: {first!r} is none of {len(place)} entries, which are numbered from 0; all are *")
    chosen = range(len(place)) if first == "*" else [int(first)]
    return [_changed(each, key, rest, value) if index in chosen else each for index, each in enumerate(place)]


# --- keys -------------------------------------------------------------------------------------------------------------


def key_of(scenario: Scenario, folder: Path, policy: WindowPolicy | None = None) -> str:
    """16 hexadecimal digits. A policy counts by its `repr`. Raises BadScenario for a file that can't be read."""
    content = scenario.model_dump(mode="json", warnings=False)
    files = {}
    for place, name in _files(content):
        try:
            found = (folder / name).stat()
            files[place] = _digest(folder / name, found.st_mtime_ns, found.st_size)
        except OSError as error:
            raise BadScenario(f"{place}: {error}") from error
    code = _digest_of_code(policies_matter=not _is_static(scenario, policy))
    depends_on = json.dumps([code, content, files, repr(policy)], sort_keys=True)
    return hashlib.sha256(depends_on.encode()).hexdigest()[:16]


def _files(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and name of every file that a scenario refers to."""
    entries: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        here = f"{place}.{key}" if place else str(key)
        if isinstance(value, str) and str(key).endswith(FILE):
            yield here, value
        elif isinstance(value, dict | list):
            yield from _files(value, here)


@lru_cache(maxsize=1024)
def _digest(path: Path, changed_ns: int, num_bytes: int) -> str:
    """Of a file, read again once one of these is another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_static(scenario: Scenario, policy: WindowPolicy | None) -> bool:
    return isinstance(policy, StaticPolicy) or (policy is None and scenario.policies.windows == StaticPolicy.name)


@lru_cache(maxsize=2)
def _digest_of_code(*, policies_matter: bool) -> str:
    """Of the simulator, of what it shares with the services, and of the policies that matter and their weights."""
    digest = hashlib.sha256()
    for package in ("awc", PACKAGE, "shared"):
        for path in sorted((ROOT / package).rglob("*")):
            name = path.relative_to(ROOT / package).as_posix()
            is_idle = package == "awc" and not policies_matter and name not in STATIC
            is_code = path.is_file() and path.suffix != ".pyc"
            if is_code and not is_idle and not (package == PACKAGE and name in SHOWING):
                digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
