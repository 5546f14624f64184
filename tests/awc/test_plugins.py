"""Policies named module:Class: their documentation page works as printed, and a bad one gives one line of error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from awc.plugins import BadPolicy, load_plugin
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice, decide_all
from awc.registry import policy_kind
from dsd_sim.scenario.scenario import read_scenario
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import key_of
from services.window_controller.settings import ControllerSettings
from shared.protocol.messages import MAX_WINDOW, PairReport
from shared.runtime.config import BadSettings, read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-policy.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
NAME = "my_policy:RoundTrip"
SCENARIO = ROOT / "scenarios" / "small.toml"
GOOD = """
class Policy:
    name = "good"
    def __init__(self, start):
        self.start = start
    def for_pair(self):
        return self
    def decide(self, seen):
        return self.start
"""


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from, with the page's policy."""
    (tmp_path / "my_policy.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    load_plugin.cache_clear()
    yield tmp_path
    load_plugin.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def with_policy(name: str) -> str:
    """The small scenario with another policy."""
    text, num = re.subn(r'^windows = ".*"$', f'windows = "{name}"', SCENARIO.read_text(), flags=re.MULTILINE)
    assert num == 1
    return text


def a_report(draft_ms: float, rtt_ms: float, pass_ms: float) -> PairReport:
    return PairReport("v.1", 1, 8, 9, 8, 1, 0, 0, draft_ms, rtt_ms, 0.0, 30.0, 100, pass_ms)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_policy_of_the_page_has_twenty_lines() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 20


def test_the_policy_of_the_page_chooses_the_guesses_of_a_round_trip_and_a_pass() -> None:
    policy = policy_kind(NAME)(DEFAULT_CHOICE)
    pair = policy.for_pair()
    seen = [a_report(10.0, 60.0, 40.0), a_report(1.0, 600.0, 40.0), a_report(100.0, 5.0, 5.0)]
    assert [pair.decide(each).window for each in seen] == [10, MAX_WINDOW, 1]
    assert policy.name == "round-trip"


def test_the_command_of_the_page_runs_it_in_the_simulator(importable: Path) -> None:
    (line,) = re.findall(r"^python -m (dsd_sim run .*)$", PAGE, flags=re.MULTILINE)
    command = [sys.executable, "-m", *line.split(), "--seeds", "1"]
    environment = os.environ | {"PYTHONPATH": str(importable)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "throughput" in done.stdout


def test_the_setting_of_the_page_gives_it_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    (given,) = re.findall(r"^DSD_WINDOW_POLICY=(\S+)", PAGE, flags=re.MULTILINE)
    monkeypatch.setenv("DSD_WINDOW_POLICY", given)
    settings = read(ControllerSettings, ["--window", "4"], "controller")
    policy = settings.make_policy()
    assert policy.name == "round-trip"
    assert policy.for_pair().decide(a_report(0.0, 0.0, 0.0)) == settings.start


def test_the_error_of_the_page_is_the_one_that_is_told(tmp_path: Path) -> None:
    (told,) = re.findall(r"^small.toml: (.*)$", PAGE, flags=re.MULTILINE)
    path = tmp_path / "small.toml"
    path.write_text(with_policy("my_policy:RoundTripp"))
    with pytest.raises(BadScenario) as refused:
        read_scenario(path)
    assert str(refused.value) == f"{path}: {told}"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("no_such_module:Policy", GOOD, "there is no module 'no_such_module'; start in its folder"),
        ("theirs:Polici", GOOD, "module 'theirs' has no attribute 'Polici'"),
        ("theirs:", GOOD, "module 'theirs' has no attribute ''"),
        ("theirs:Policy", "import no_such_thing", "there is no module 'no_such_thing'"),
        ("theirs:Policy", "class Policy(", "importing theirs failed: SyntaxError"),
        ("theirs:Policy", GOOD.replace("self, start", "self"), "Class(start): TypeError"),
        ("theirs:Policy", GOOD.replace('    name = "good"\n', ""), "name: AttributeError"),
        ("theirs:Policy", GOOD.replace('"good"', "7"), "name: TypeError: must be a text, got 7"),
        ("theirs:Policy", GOOD.replace("for_pair", "pair"), "for_pair(): AttributeError"),
        ("theirs:Policy", GOOD.replace("(self, seen)", "(self)"), "decide(report of zeros): TypeError"),
        ("theirs:Policy", GOOD.replace("self.start\n", "1 / seen.draft_ms\n").replace("= 1 /", "="),
         "decide(report of zeros): ZeroDivisionError"),
        ("theirs:Policy", GOOD.replace("return self.start", "return 8"),
         "decide() must return a WindowChoice, got 8"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_policy_is_refused_in_one_line(importable: Path, name: str, code: str, told: str) -> None:
    (importable / "theirs.py").write_text(code)
    with pytest.raises(BadPolicy) as refused:
        load_plugin(name)
    assert str(refused.value).startswith(f"policy {name!r}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(BadSettings, match="--window-policy / DSD_WINDOW_POLICY"):
        read(ControllerSettings, ["--window-policy", name], "controller")


def test_a_decision_that_is_no_choice_is_refused_later_too() -> None:
    class Late:
        name = "late"

        def for_pair(self) -> PairControl:
            return self

        def decide(self, seen: PairReport) -> WindowChoice:
            return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"policy late: decide\(\) must return a WindowChoice, got None"):
        decide_all(Late(), [Late()], [a_report(1.0, 1.0, 1.0)])


# --- results that are kept --------------------------------------------------------------------------------------------


def test_a_result_depends_on_the_code_of_the_policy(importable: Path, tmp_path: Path) -> None:
    (importable / "theirs.py").write_text(GOOD)
    package = importable / "packed"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(GOOD)
    for name, changed in (
        ("theirs:Policy", importable / "theirs.py"),
        ("packed.inner:Policy", package / "__init__.py"),
    ):
        path = tmp_path / "plugin.toml"
        path.write_text(with_policy(name))
        scenario = read_scenario(path)
        before = key_of(scenario, SCENARIO.parent)
        assert key_of(scenario, SCENARIO.parent) == before
        changed.write_text(changed.read_text() + "# changed\n")
        assert key_of(scenario, SCENARIO.parent) != before
