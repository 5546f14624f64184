"""A controller's configuration file: what overrides it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from awc.policy import WindowChoice, WindowPolicy
from awc.registry import POLICIES
from services.window_controller.settings import ControllerSettings
from shared.runtime.config import BadSettings, load, read

PROG = "controller"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ControllerSettings.model_fields:
        monkeypatch.delenv(f"DSD_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "controller.toml"


def settings(file: Path, *argv: str) -> ControllerSettings:
    return read(ControllerSettings, ["--config-file", str(file), *argv], PROG)


def test_a_flag_wins_over_a_variable_that_over_the_file_and_that_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('window_policy = "static"\nwindow = 1\nchunk = 1\nannounce_s = 7\nfree_run = false\n')
    monkeypatch.setenv("DSD_CHUNK", "2")
    monkeypatch.setenv("DSD_WINDOW", "2")
    told = settings(file, "--window", "3")
    assert (told.window, told.chunk, told.window_policy, told.announce_s) == (3, 2, "static", 7.0)
    assert (told.free_run, told.min_confidence) == (False, 0.0)


def test_a_variable_may_name_the_file_and_none_is_needed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("window = 5\n")
    monkeypatch.setenv("DSD_CONFIG_FILE", str(file))
    assert read(ControllerSettings, [], PROG).window == 5
    monkeypatch.setenv("DSD_CONFIG_FILE", "")
    assert read(ControllerSettings, [], PROG).window == 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("window = ", "controller.toml is not TOML"),
        ("a = " + "[" * 100_000, "controller.toml is not TOML"),
        ("windo = 4", "controller.toml: unknown setting windo"),
        ("[window]\nstart = 4", "--window / DSD_WINDOW"),
        ("window = 65", "--window / DSD_WINDOW"),
        ('window_policy = "best"', "--window-policy / DSD_WINDOW_POLICY"),
        ("window = 4\nchunk = 5", "chunk must be 1 to 4 with a window of 4, got 5"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_in_one_line(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(BadSettings) as refused:
        settings(file)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["missing.toml", ""])
def test_a_file_that_can_not_be_read_ends_the_start_with_status_2(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(ControllerSettings, ["--config-file", str(tmp_path / place)], PROG)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"controller: {tmp_path / place} can't be read: ")


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="is not TOML"):
        settings(file)


def test_only_the_policy_and_its_start_are_taken_from_other_settings() -> None:
    running = ControllerSettings.model_validate({"max_pairs": 3, "window": 16, "chunk": 4})
    wanted = ControllerSettings.model_validate({"max_pairs": 5, "window_policy": "static", "window": 1})
    steered = running.steered_by(wanted)
    assert (steered.max_pairs, steered.steering) == (3, wanted.steering)
    assert steered.steering != running.steering
    assert steered.differing(wanted) == ["max_pairs"]


def test_a_policy_whose_files_are_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_weights(start: WindowChoice) -> WindowPolicy:
        raise FileNotFoundError("no weights")

    monkeypatch.setitem(POLICIES, "ladder", without_weights)
    with pytest.raises(BadSettings, match="the policy ladder can't be made: no weights"):
        read(ControllerSettings, ["--window-policy", "ladder"], PROG)
