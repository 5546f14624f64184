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


def own_drafters(file: Path, owner: str = "alice") -> dict[str, str]:
    found = parse(file.read_bytes()).find(KEYS[owner])
    assert found is not None
    return dict(found.own_drafters)


def printed_keys(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Checks that only seeds are printed, and returns the public key of each drafter."""
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.fullmatch(r"(key-[a-z-]+: SU[A-Z2-7]{56}\n)+", done.stderr)
    return {name: public_key(seed) for name, seed in (line.split(": ") for line in done.stderr.splitlines())}


def test_drafters_of_a_key_that_is_there_are_added_one_after_the_other_and_keep_the_file_s_rest(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f"# ours\n{entry('alice', KEYS['alice'])}\n{entry('bob', KEYS['bob'])}drafters = []\n")
    before = file.read_text()
    laptop = printed_keys(made("alice", "--drafter", "key-alice-laptop", "--into", str(file)))
    desk = printed_keys(made("alice", "--drafter", "key-alice-desk", "--into", str(file)))
    assert own_drafters(file) == laptop | desk
    assert own_drafters(file, "bob") == {}
    assert file.read_text().startswith(before)
    assert list(tmp_path.iterdir()) == [file]


def test_a_drafter_that_is_there_gets_a_new_key_and_the_others_keep_theirs(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        entry("alice", KEYS["alice"])
        + f'[alice.own_drafters] # of alice\n"key-alice-desk" = "{PUBLIC}"\nkey-alice = "{PUBLIC}"\n'
        + entry("bob", KEYS["bob"])
    )
    file.chmod(0o640)
    new = printed_keys(made("alice", "--drafter", "key-alice", "--into", str(file)))
    assert own_drafters(file) == {"key-alice-desk": PUBLIC} | new
    assert new["key-alice"] != PUBLIC
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("argv", "more"),
    [
        (("alice", "--drafter", "key-alice"), OWN),
        (("bob", "--drafter", "key-alice"), f'[alice.own_drafters]\nkey-alice = "{PUBLIC}"\n'),
        (("alice",), ""),
        (("bob",), "drafters = 1"),
    ],
    ids=["inline table", "of another key", "nothing to make", "not valid before"],
)
def test_a_file_that_gateways_would_not_take_is_not_written(tmp_path: Path, argv: tuple[str, ...], more: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(before := entry("alice", KEYS["alice"]) + more)
    done = made(*argv, "--into", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert file.read_text() == before


def test_an_entry_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice", KEYS["alice"]) + "drafters = []")
    printed_keys(made("alice", "--drafter", "key-alice", "--into", str(file)))
    assert made("bob", "--into", str(file)).returncode == 0
    assert len(own_drafters(file)) == 1


def test_a_key_file_is_made_with_its_first_entry(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    done = made("alice", "--into", str(file))
    found = parse(file.read_bytes()).find(done.stderr.strip())
    assert found is not None
    assert found.name == "alice"


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


@pytest.fixture
def shared(tmp_path: Path) -> str:
    """A file of rights of another user."""
    (tmp_path / "gateways.conf").write_text(rights_file("gateway", ["gateway"]))
    return str(tmp_path / "gateways.conf")


def test_their_nats_users_have_the_rights_of_a_drafter_and_the_public_key_of_the_file(
    tmp_path: Path, shared: str
) -> None:
    (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + OWN)
    main(["keys", shared, "--out", str(tmp_path)])
    users = (tmp_path / "users.conf").read_text()
    _, *expected, _ = rights_file("drafter", ["key-alice"], connections="STANDARD, WEBSOCKET").splitlines(keepends=True)
    assert "".join(expected) in users
    assert "connections-key-alice: [STANDARD, WEBSOCKET]" in users
    assert f"{{nkey: {PUBLIC}, permissions: $rights-key-alice, allowed_connection_types: " in users
    assert PUBLIC not in [public_key(path.read_text()) for path in tmp_path.glob("*/*")], "its user alone has the seed"


def test_where_the_last_of_them_is_gone_its_key_is_gone_too(tmp_path: Path, shared: str) -> None:
    for more in (OWN, ""):
        (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + more)
        also = [] if more else ["--also", str(tmp_path / "users.conf")]
        main(["keys", shared, "--out", str(tmp_path), *also])
    users = (tmp_path / "users.conf").read_text()
    assert PUBLIC not in users
    assert "rights-gateway" in users


@pytest.mark.parametrize(
    "more",
    ['own_drafters = {alice = "U"}', f'own_drafters = {{alice = "{PUBLIC}"}}'],
    ids=["no key", "no such name"],
)
def test_no_nats_user_follows_from_a_drafter_that_others_would_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: str, more: str
) -> None:
    (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + more)
    with pytest.raises(SystemExit):
        main(["keys", shared, "--out", str(tmp_path)])
    assert "own_drafters" in capsys.readouterr().err
    assert not (tmp_path / "users.conf").exists()


def test_no_name_is_a_drafter_of_a_key_and_another_user_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.toml").write_text(entry("alice", KEYS["alice"]) + OWN)
    (tmp_path / "sites.conf").write_text(rights_file("drafter", ["key-alice"]))
    with pytest.raises(SystemExit):
        main(["keys", str(tmp_path / "sites.conf"), "--out", str(tmp_path)])
    assert "key-alice appears twice" in capsys.readouterr().err
