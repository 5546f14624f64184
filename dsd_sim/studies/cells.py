"""Cells: the simulations of a study. A cell is one scenario, made of a file and settings.

Invariant: a cell's key is a digest of everything that its result depends on: equal cells have equal keys, and any
change gives another key. A bad setting is reported in one line that names the file and the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from awc.plugins import is_plugin, sources_of
from awc.policies.static import StaticPolicy
from awc.policy import WindowPolicy
from dsd_sim.engine.fleet import SimFleet
from dsd_sim.engine.world import TooLarge
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario, scenario_of
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.measured import MeasuredPart
from dsd_sim.studies.report import SimReport, report_of

ROOT = Path(__file__).parents[2]
PACKAGE = "dsd_sim"
# Files of the package that no result depends on: commands, summaries, tables and plots.
PRESENTATION = {
    "__main__.py", "roofline/cli.py", "roofline/roofline.py",
    *(f"studies/{name}.py" for name in (
        "cli", "compare", "crossover", "plan", "plan_cli", "plan_plot", "plots", "sweep", "tables", "trace",
    )),
}  # fmt: skip
STATIC = {"policy.py", "policies/static.py"}  # of awc: all that a run with a static window depends on
WARM_UP, NUM_SEEDS = 0.1, 3  # of figures to quote: share of the requests left out, and seeds unless a file names some
FILE = "file"  # ending of the keys that name a file: file, profile, draft_profile


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation. `path`: of its scenario's file. `label`: its settings, for error messages. `policy`: replaces the
    one that the scenario names; reports are then made even if it is static. `warm_up`: share of the requests, the
    first ones, that figures leave out."""

    scenario: Scenario
    path: Path
    label: str
    key: str
    policy: WindowPolicy | None = None
    warm_up: float = 0.0


def cell_of(content: dict[str, Any], path: Path, settings: Mapping[str, Any], warm_up: float = 0.0) -> Cell:
    """The scenario of a file's content with new values at dotted keys. Raises BadScenario."""
    label = describe_settings(settings)
    try:
        for key, value in settings.items():
            content = _changed(content, key, key.split("."), value)
        scenario = scenario_of(content, path)
        return Cell(scenario, path, label, key_of(scenario, path.parent, warm_up=warm_up), warm_up=warm_up)
    except BadScenario as error:
        raise BadScenario(error_line(path, error, label)) from error


def error_line(path: Path, error: Exception, label: str = "") -> str:
    """The error in one line that names the file and, with a label, the settings."""
    message = " ".join(str(error).split())
    return (message if str(path) in message else f"{path}: {message}") + (f" (with {label})" if label else "")


def fleet_of(cell: Cell, num_logged: int = 0) -> SimFleet:
    """The fleet of a cell, ready to run. `num_logged`: log entries to keep. Raises BadScenario."""
    try:
        fleet = make_fleet(cell.scenario, cell.path.parent, num_logged)
    except (BadScenario, OSError) as error:
        raise BadScenario(error_line(cell.path, error, cell.label)) from error
    if cell.policy is not None:
        fleet.policy, fleet.is_watched = cell.policy, True
    return fleet


def run_fleet(cell: Cell, fleet: SimFleet) -> SimReport:
    """Serves all requests of the cell's fleet. Raises BadScenario for a run that outgrows memory or virtual time."""
    measured = MeasuredPart(cell.warm_up)
    fleet.on_arrival = measured.arrive
    try:
        fleet.run()
    except TooLarge as error:
        raise BadScenario(error_line(cell.path, error, cell.label)) from error
    return report_of(cell.scenario, fleet, measured)


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_of(key: str, value: Any) -> dict[str, Any]:
    """A setting as values by dotted keys. A table sets each of its keys, or all of itself if it has a `kind`."""
    if not isinstance(value, dict) or "kind" in value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= settings_of(f"{key}.{name}", inner)
    return found


def describe_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {describe_value(value)}" for key, value in settings.items())


def describe_value(value: Any) -> str:
    """A string unquoted, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _changed(place: Any, key: str, steps: Sequence[str], value: Any) -> Any:
    """A copy of `place` with the value at the end of `steps`, the parts of `key`. Missing tables are created."""
    if not steps:
        return value
    first, rest = steps[0], steps[1:]
    if not isinstance(place, list):
        table = place if isinstance(place, dict) else {}
        return table | {first: _changed(table.get(first), key, rest, value)}
    if first != "*" and not (first.isdecimal() and int(first) < len(place)):
        last = len(place) - 1
        raise BadScenario(f"{key}: {first!r} must be the number of an entry, 0 to {last}, or * for all entries")
    chosen = range(len(place)) if first == "*" else [int(first)]
    return [_changed(each, key, rest, value) if index in chosen else each for index, each in enumerate(place)]


# --- keys -------------------------------------------------------------------------------------------------------------


def key_of(scenario: Scenario, folder: Path, policy: WindowPolicy | None = None, *, warm_up: float = 0.0) -> str:
    """16 hexadecimal digits. A policy is digested by its `repr`. Raises BadScenario for a file that can't be read."""
    content = scenario.model_dump(mode="json", warnings=False)
    files = {}
    for place, name in _files(content):
        try:
            found = (folder / name).stat()
            files[place] = _digest(folder / name, found.st_mtime_ns, found.st_size)
        except OSError as error:
            raise BadScenario(f"{place}: {error}") from error
    for source in sources_of(scenario.policies.windows) if is_plugin(scenario.policies.windows) else ():
        files[str(source)] = hashlib.sha256(source.read_bytes()).hexdigest()
    code = _digest_of_code(policies_matter=not _is_static(scenario, policy))
    depends_on = json.dumps([code, content, files, repr(policy), warm_up], sort_keys=True)
    return hashlib.sha256(depends_on.encode()).hexdigest()[:16]


def _files(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and name of each file that a scenario names."""
    entries: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        here = f"{place}.{key}" if place else str(key)
        if isinstance(value, str) and str(key).endswith(FILE):
            yield here, value
        elif isinstance(value, dict | list):
            yield from _files(value, here)


@lru_cache(maxsize=1024)
def _digest(path: Path, changed_ns: int, num_bytes: int) -> str:
    """The digest of a file; cached until its time or size changes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_static(scenario: Scenario, policy: WindowPolicy | None) -> bool:
    return isinstance(policy, StaticPolicy) or (policy is None and scenario.policies.windows == StaticPolicy.name)


@lru_cache(maxsize=2)
def _digest_of_code(*, policies_matter: bool) -> str:
    """The digest of the simulator, of `shared`, and of the policies that matter, with their weights."""
    digest = hashlib.sha256()
    for package in ("awc", PACKAGE, "shared"):
        for path in sorted((ROOT / package).rglob("*")):
            name = path.relative_to(ROOT / package).as_posix()
            is_unused = package == "awc" and not policies_matter and name not in STATIC
            is_code = path.is_file() and path.suffix != ".pyc"
            if is_code and not is_unused and not (package == PACKAGE and name in PRESENTATION):
                digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
