"""Drafters in the key file, the command that makes their keys, and the NATS users that follow from the file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.admission.api_keys import BadKeyFile, parse
from services.local.nats_users import main, rights_file
from shared.runtime.nats_keys import new_seed, public_key
from tests.gateway.admission.test_api_keys import KEYS, entry

PUBLIC = public_key(new_seed())
OWN = f'own_drafters = {{key-alice = "{PUBLIC}"}}\n'


def made(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.gateway.new_key", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_makes_keys_whose_secrets_are_in_no_file() -> None:
    done = made("alice", "--drafter", "key-alice", "--drafter", "key-alice-desk")
    key, *drafters = done.stderr.splitlines()
    found = parse(done.stdout.encode()).find(key)
    assert found is not None
    seeds = dict(line.split(": ") for line in drafters)
    assert found.own_drafters == {name: public_key(seed) for name, seed in seeds.items()}
    assert not any(secret in done.stdout for secret in (key, *seeds.values()))
    assert list(seeds) == ["key-alice", "key-alice-desk"]


def test_drafters_of_a_key_that_is_there_get_keys_alone() -> None:
    done = made("alice", "--drafter", "key-alice", "--drafters-only")
    found = parse((entry("alice", KEYS["alice"]) + done.stdout).encode()).find(KEYS["alice"])
    assert found is not None
    assert list(found.own_drafters) == ["key-alice"]
    assert re.fullmatch(r"key-alice: SU[A-Z2-7]{56}\n", done.stderr)


@pytest.mark.parametrize("name", ["alice", "key-", "key-Alice", f"key-{'a' * 61}"])
def test_a_drafter_must_show_by_its_name_that_it_belongs_to_a_key(name: str) -> None:
    done = made("alice", "--drafter", name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    with pytest.raises(BadKeyFile, match="own_drafters"):
        parse((entry("alice", KEYS["alice"]) + f'own_drafters = {{{name} = "{PUBLIC}"}}').encode())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (entry("alice", KEYS["alice"]) + 'own_drafters = {key-alice = "SECRET"}', "own_drafters"),
        (entry("alice", KEYS["alice"]) + 'drafters = ["key-alice"]', "stand in own_drafters"),
        (entry("alice", KEYS["alice"]) + 'drafters = ["key-*"]', "stand in own_drafters"),
        (entry("alice", KEYS["alice"]) + OWN + entry("bob", KEYS["bob"]) + OWN, "belongs to two keys"),
    ],
)
def test_a_file_that_would_share_a_drafter_is_refused(text: str, told: str) -> None:
    with pytest.raises(BadKeyFile, match=told) as refused:
        parse(text.encode())
    assert "SECRET" not in str(refused.value)


def test_their_nats_users_have_the_rights_of_a_drafter_and_the_public_key_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + OWN)
    main(["owned", str(tmp_path / "keys.toml")])
    (tmp_path / "owned-drafters.conf").write_text(told := capsys.readouterr().out)
    expected = rights_file("drafter", ["key-alice"]).splitlines()[1:-2]
    assert told.splitlines()[1 : 1 + len(expected)] == expected
    assert "connections-key-alice: [STANDARD, WEBSOCKET]" in told
    main(["keys", str(tmp_path / "owned-drafters.conf"), "--out", str(tmp_path)])
    users = (tmp_path / "users.conf").read_text()
    assert f"{{nkey: {PUBLIC}, permissions: $rights-key-alice, allowed_connection_types: " in users
    assert not (tmp_path / "owned-drafters").exists(), "nobody but its user has the seed"


@pytest.mark.parametrize(
    "more",
    ["", 'own_drafters = {alice = "U"}', f'own_drafters = {{alice = "{PUBLIC}"}}'],
    ids=["none", "no key", "no such name"],
)
def test_no_nats_user_follows_from_a_drafter_that_others_would_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + more)
    with pytest.raises(SystemExit):
        main(["owned", str(tmp_path / "keys.toml")])
    assert "own_drafters" in capsys.readouterr().err
