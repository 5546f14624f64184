"""Settings: where values come from, what a bad one is answered with, what --help lists."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator

from shared.runtime.config import ServiceSettings, load

PROG = "python -m services.edge_drafter"
USER_SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"  # the example of NATS's documentation


class DrafterSettings(ServiceSettings):
    """Edge drafter: guesses tokens."""

    name: str = Field("drafter", description="Name of this instance")
    draft: Path = Field(description="Folder of the draft model")
    window: int = Field(8, ge=0, le=64, description="Unverified tokens")
    free_run: bool = Field(True, description="Whether the verifier goes on alone")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where it computes")
    key: SecretStr = Field(SecretStr(""), min_length=0, max_length=8, description="Key of a lock")

    @model_validator(mode="after")
    def _has_room(self) -> "DrafterSettings":
        if self.window > 32 and self.device == "cpu":
            raise ValueError("window must be at most 32 where device is cpu")
        return self


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "NAME",
        "DRAFT",
        "WINDOW",
        "NATS_URL",
        "NATS_PASSWORD",
        "NATS_NKEY_SEED",
        "HTTP_PORT",
        "KEY",
        "FREE_RUN",
    ):
        monkeypatch.delenv(f"DSD_{name}", raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line with which `load` refuses; fails unless it is one line and the status is 2."""
    with pytest.raises(SystemExit) as stopped:
        load(DrafterSettings, argv, PROG)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(PROG + ": ")
    return err


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(DrafterSettings, ["--draft", "a"], PROG).window == 8
    monkeypatch.setenv("DSD_WINDOW", "4")
    assert load(DrafterSettings, ["--draft", "a"], PROG).window == 4
    assert load(DrafterSettings, ["--draft", "a", "--window", "2"], PROG).window == 2


def test_values_have_their_fields_types() -> None:
    settings = load(DrafterSettings, ["--draft=models/a", "--http-port=80", "--no-free-run", "--drain-s", "1"], PROG)
    assert settings.draft == Path("models/a")
    assert (settings.http_port, settings.free_run, settings.drain_s) == (80, False, 1.0)
    assert type(settings) is DrafterSettings


def test_a_flag_may_be_written_with_underscores_and_its_value_keeps_them() -> None:
    settings = load(DrafterSettings, ["--http_port", "80", "--draft=my_models/a_b"], PROG)
    assert (settings.http_port, settings.draft) == (80, Path("my_models/a_b"))


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_WINDOW", "")
    assert load(DrafterSettings, ["--draft", "a"], PROG).window == 8


def test_settings_do_not_change() -> None:
    settings = load(DrafterSettings, ["--draft", "a"], PROG)
    with pytest.raises(ValidationError):
        settings.window = 3


def test_help_lists_every_setting_with_variable_default_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(DrafterSettings, ["--help"], PROG)
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Edge drafter: guesses tokens." in text
    for name, field in DrafterSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"[env: DSD_{name.upper()}]" in text
        assert field.description
        assert field.description in text
    assert "(default: 8) [env: DSD_WINDOW]" in text
    assert "(required) [env: DSD_DRAFT]" in text


def test_every_common_setting_has_a_sentence() -> None:
    assert all(field.description for field in ServiceSettings.model_fields.values())


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--window", "x"], ["--window / DSD_WINDOW", "integer", "'x'"]),
        (["--window", "65"], ["--window / DSD_WINDOW", "64", "'65'"]),
        (["--device", "tpu"], ["--device / DSD_DEVICE", "'cpu' or 'cuda'", "'tpu'"]),
        (["--name", "Edge 1"], ["--name / DSD_NAME", "a-z", "'Edge 1'"]),
        (["--nats-url", "localhost"], ["--nats-url / DSD_NATS_URL", "nats://host:port", "'localhost'"]),
        (["--nats-url", "nats://a:4222,http://b"], ["--nats-url / DSD_NATS_URL", "nats://host:port"]),
        (["--nats-url", "nats://a:port"], ["--nats-url / DSD_NATS_URL", "'nats://a:port'"]),
        (["--nats-ca", "missing.pem"], ["--nats-ca / DSD_NATS_CA", "no such file", "'missing.pem'"]),
        (["--http-port", "-1"], ["--http-port"]),
        (["--windo", "3"], ["--windo"]),
        (["--wndow", "3"], ["--wndow"]),
        (["extra"], ["extra"]),
        (["--window"], ["--window", "expected one argument"]),
        (["--window", "33"], ["window must be at most 32 where device is cpu"]),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], argv: list[str], told: list[str]
) -> None:
    line = refusal(capsys, "--draft", "a", *argv)
    assert all(word in line for word in told), line


def test_a_bad_variable_is_refused_like_a_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_WINDOW", "many")
    assert "--window / DSD_WINDOW" in refusal(capsys, "--draft", "a")


def test_a_missing_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--draft / DSD_DRAFT: Field required" in refusal(capsys)


def test_secrets_never_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSD_KEY", "far too long")
    line = refusal(capsys, "--draft", "a")
    assert "--key / DSD_KEY" in line
    assert "far too" not in line
    monkeypatch.setenv("DSD_KEY", "hush")
    settings = load(DrafterSettings, ["--draft", "a"], PROG)
    assert settings.key.get_secret_value() == "hush"
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("natss://u:secret@h:1", "natss://***@h:1"),
        ("u:secret@h:1", "***@h:1"),
        ("nats://secret@a:1,http://u:secret@b:2", "nats://***@a:1,http://***@b:2"),
        ("nats://a:1, natss://u:secret@b", "nats://a:1, natss://***@b"),
        ("nats://a:1,u:secret@b", "nats://***@b"),
        ("nats://u:secret/1,@2@h:1", "nats://***@h:1"),
        ("nats://u:se\ncret@h:port", "nats://***@h:port"),
        ("nats://u:secret]@h", "nats://***@h"),
        ("natss://h:1", "natss://h:1"),
    ],
)
def test_the_password_in_an_address_never_shows(capsys: pytest.CaptureFixture[str], given: str, shown: str) -> None:
    line = refusal(capsys, "--draft", "a", "--nats-url", given)
    assert "--nats-url / DSD_NATS_URL: each address must look like nats://host:port" in line
    assert line.endswith(f"(got '{shown}')\n")
    assert "secret" not in line


def test_nor_does_it_behind_a_flag_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "--draft", "a", "--nats-urls", "nats://u:secret@h:1", "--nats=nats://u:secret@h:1")
    assert "--nats-urls nats://***@h:1 --nats=nats://***@h:1" in line


def test_the_seed_of_a_nats_user_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text(USER_SEED + "\n")
    assert load(DrafterSettings, ["--draft", "a", "--nats-nkey-seed", str(file)], PROG).nats_nkey_seed == str(file)


@pytest.mark.parametrize(
    "content",
    ["", "secret", USER_SEED[:-8], "SA" + USER_SEED[2:], USER_SEED.replace("3", "1"), f"# of edge-1\n{USER_SEED}"],
    ids=["empty", "no-seed", "cut", "of-an-account", "no-base32", "with-a-comment"],
)
def test_a_file_without_a_seed_is_refused_and_its_content_not_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "seed"
    file.write_text(content)
    line = refusal(capsys, "--draft", "a", "--nats-nkey-seed", str(file))
    assert f"--nats-nkey-seed / DSD_NATS_NKEY_SEED: the file holds no NKey seed of a user (got '{file}')" in line
    assert USER_SEED[2:20] not in line


def test_a_missing_file_of_a_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "can't be read: No such file" in refusal(capsys, "--draft", "a", "--nats-nkey-seed", "missing.seed")
