"""nats_users.py gives names the rights of docs/protocol.md, and k8s/ holds what it prints for the names in use."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.nats_server import write_secured
from services.local.nats_users import KINDS, Rights, main, rights_file
from shared.protocol import subjects
from shared.runtime.nats_keys import new_seed, public_key
from tests.k8s.commands import OWN_DRAFTER, run_commands
from tests.k8s.machine import Built, files_of
from tests.k8s.manifests import DOCUMENT, K8S, ROOT, Secrets, pod_names, secrets_for, service_of, the, workloads

RIGHTS_FILES = [path for path in sorted(K8S.rglob("*.conf")) if "rights-" in path.read_text().splitlines()[1]]


def table_of_the_protocol() -> dict[str, Rights]:
    """The rows of docs/protocol.md: | gateway `g` | `…`, `…` | `…` |."""
    rows = re.findall(r"^\| (\w+) `(\w)` \| (.+) \| (.+) \|$", (ROOT / "docs/protocol.md").read_text(), re.MULTILINE)
    return {
        kind: Rights(granted(publish, letter), granted(subscribe, letter)) for kind, letter, publish, subscribe in rows
    }


def granted(cell: str, letter: str) -> tuple[str, ...]:
    """`a.{b,c}.g.*` of a cell, as a.b.NAME.* and a.c.NAME.*."""
    found = []
    for subject in re.findall(r"`(.+?)`", cell):
        tokens = [token[1:-1].split(",") if token.startswith("{") else [token] for token in subject.split(".")]
        found += [
            ".".join("NAME" if token == letter else token for token in chosen) for chosen in itertools.product(*tokens)
        ]
    return tuple(found)


def test_the_rights_are_those_of_the_protocol() -> None:
    assert table_of_the_protocol() == KINDS


def test_a_publisher_s_name_is_in_every_subject_where_the_bus_looks_for_the_sender() -> None:
    for rights in KINDS.values():
        for subject in rights.publish:
            name, nonce = subjects.sender(subject).split(".")
            assert (name, nonce) == ("NAME", "*")


def test_nobody_has_a_shared_inbox() -> None:
    for rights in KINDS.values():
        for subject in rights.publish + rights.subscribe:
            assert not subject.startswith(("*", ">", "_INBOX"))


@pytest.mark.parametrize("path", RIGHTS_FILES, ids=lambda path: path.name)
def test_a_file_of_rights_is_what_its_first_line_s_command_prints(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, command = path.read_text().splitlines()[0].partition("Made by: python -m services.local.nats_users ")
    main(shlex.split(command))
    assert path.read_text() == capsys.readouterr().out


def test_the_files_of_rights_are_looked_at() -> None:
    names = [path.name for path in RIGHTS_FILES]
    assert names == [
        "controllers.conf",
        "drafters.conf",
        "gateways.conf",
        "verifiers.conf",
        "sites.conf",
        "drafters.conf",
    ]


@pytest.mark.parametrize("name", ["dev", "cloud", "edge", "many nodes", "own pair"])
def test_every_pod_that_there_may_be_has_a_user(built: Built, documented: dict[str, Secrets], name: str) -> None:
    rights = files_of(built(name), secrets_for(name, documented))["users.conf"]
    for workload in workloads(built(name)):
        for pod_name in pod_names(workload, built(name)) if service_of(workload) else []:
            assert f"rights-{pod_name}: {{" in rights


def test_a_site_s_leaf_may_what_its_drafters_may() -> None:
    """The cloud grants the leaf all that the site grants its drafters, and no more."""
    leaf, drafters = (K8S / "overlays" / file for file in ("cloud/sites.conf", "edge/drafters.conf"))
    assert granted_subjects(leaf.read_text()) == granted_subjects(drafters.read_text())


def test_the_overlay_for_trying_out_has_the_rights_of_the_base() -> None:
    users = (K8S / "overlays/dev/example-keys/users.conf").read_text()
    for kind in ("gateways", "controllers", "verifiers", "drafters"):
        assert (K8S / f"base/nats/{kind}.conf").read_text() in users


def test_one_file_has_the_users_and_their_rights(tmp_path: Path) -> None:
    """Else a server that restarts or reloads between two files would name users without rights, and not start."""
    rights = [K8S / "base/nats/verifiers.conf", K8S / "overlays/cloud/sites.conf"]
    main(["keys", *map(str, rights), "--out", str(tmp_path)])
    users = (tmp_path / "users.conf").read_text()
    assert "include" not in users
    assert all(path.read_text() in users for path in rights)


def test_keys_that_stay_valid_are_those_of_users_that_there_still_are(tmp_path: Path) -> None:
    """The old key of a site that left would name rights that nobody has: NATS would refuse the file."""
    (both, one) = (tmp_path / "both.conf", tmp_path / "one.conf")
    both.write_text(rights_file("drafter", ["stays", "leaves"]))
    one.write_text(rights_file("drafter", ["stays"]))
    main(["keys", str(both), "--out", str(tmp_path)])
    (tmp_path / "both/stays").rename(tmp_path / "was")
    main(["keys", str(one), "--out", str(tmp_path), "--also", str(tmp_path / "users.conf")])
    users = (tmp_path / "users.conf").read_text()
    assert users.count("$rights-stays") == 2
    assert "leaves" not in users


def granted_subjects(conf: str) -> set[tuple[str, str]]:
    lists: Iterator[tuple[str, str]] = iter(re.findall(r"(publish|subscribe): \[(.+?)\]", conf, re.DOTALL))
    return {(verb, subject) for verb, listed in lists for subject in re.findall(r'"(.+)"', listed)}


def test_seeds_are_new_each_time_and_prove_a_user() -> None:
    seeds = {new_seed() for _ in range(20)}
    assert len(seeds) == len({public_key(seed) for seed in seeds}) == 20
    assert all(re.fullmatch("SU[A-Z2-7]{56}", seed) for seed in seeds)
    assert all(re.fullmatch("U[A-Z2-7]{55}", public_key(seed)) for seed in seeds)


def test_the_public_key_is_the_one_that_nats_documents_for_a_seed() -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    assert public_key(seed) == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_keys_that_are_there_are_kept_and_missing_ones_made(tmp_path: Path) -> None:
    rights = K8S / "base/nats/verifiers.conf"
    main(["keys", str(rights), "--out", str(tmp_path)])
    kept = (tmp_path / "verifiers/verifier-0").read_text()
    (tmp_path / "verifiers/verifier-1").unlink()
    main(["keys", str(rights), "--out", str(tmp_path)])
    assert (tmp_path / "verifiers/verifier-0").read_text() == kept
    users = (tmp_path / "users.conf").read_text()
    for file in (tmp_path / "verifiers").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert f"{{nkey: {public_key(file.read_text())}, permissions: $rights-{file.name}, " in users
        assert file.read_text() not in users


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command is refused with; fails unless it is one line, with a status and nothing else."""
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.count("\n") == 1
    return err.strip()


@pytest.mark.parametrize("name", ["*", ">", "Edge_1", "a.b", "a b", "", "x" * 65])
def test_a_name_that_no_instance_can_have_gets_no_rights_and_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    told = f"name {name!r} must be 1 to 64 characters of a-z, 0-9 and '-'"
    assert refusal(capsys, "rights", "drafter", "good", name).endswith(told)
    rights = tmp_path / "rights.conf"
    rights.write_text(rights_file("drafter", ["good", "other"]).replace("rights-other", f"rights-{name}"))
    assert refusal(capsys, "keys", str(rights), "--out", str(tmp_path)).endswith(f"{rights}: {told}")
    assert list(tmp_path.iterdir()) == [rights]


def test_a_site_is_named_like_an_instance(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'*'" in refusal(capsys, "rights", "drafter", "edge-0", "--together", "*")


@pytest.mark.parametrize("written", ["rights-edge {", "rights-edge = {", "  rights-edge:{", "rights-edge: { # a site"])
def test_rights_that_were_written_by_hand_get_a_key_too(tmp_path: Path, written: str) -> None:
    rights = tmp_path / "rights.conf"
    rights.write_text(f"{written}\n  publish: []\n}}\n")
    main(["keys", str(rights), "--out", str(tmp_path)])
    assert "permissions: $rights-edge}" in (tmp_path / "users.conf").read_text()


def test_a_name_that_appears_twice_is_refused_and_nothing_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "edge-0 appears twice" in refusal(capsys, "rights", "drafter", "edge-0", "edge-1", "edge-0")
    (first, second) = paths = [tmp_path / "first.conf", tmp_path / "second.conf"]
    first.write_text(rights_file("drafter", ["edge-0", "edge-1"]))
    second.write_text(rights_file("verifier", ["edge-1"]))
    told = refusal(capsys, "keys", *map(str, paths), "--out", str(tmp_path))
    assert told.endswith(f"the name edge-1 appears twice: in {first} and in {second}")
    first.write_text(rights_file("drafter", ["edge-0"]) * 2)
    assert "edge-0 appears twice" in refusal(capsys, "keys", str(first), "--out", str(tmp_path))
    assert sorted(tmp_path.iterdir()) == paths


def test_a_file_without_rights_or_none_at_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, empty = tmp_path / "good.conf", tmp_path / "empty.conf"
    good.write_text(rights_file("drafter", ["edge-0"]))
    empty.write_text("# rights-edge-1: {\n")
    told = refusal(capsys, "keys", str(good), str(empty), "--out", str(tmp_path))
    assert told.endswith(f"{empty} holds no rights of any user")
    assert "No such file" in refusal(capsys, "keys", str(tmp_path / "none.conf"), "--out", str(tmp_path))
    assert sorted(tmp_path.iterdir()) == [empty, good]


def test_a_system_of_its_own_may_lack_a_kind(tmp_path: Path) -> None:
    write_secured(tmp_path / "nats", 4222, {"gateway": ["gateway"], "drafter": []})
    assert (tmp_path / "nats/users.conf").read_text().count("nkey: ") == 1


def test_routes_share_a_password_that_is_new_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for _ in range(2):
        main(["routes", "a:1", "b:2"])
        found.append(set(re.findall(r"[0-9a-f]{64}", capsys.readouterr().out)))
    assert [len(passwords) for passwords in found] == [1, 1]
    assert found[0] != found[1]


def users_of(documented: dict[str, Secrets], when: str) -> dict[str, set[str]]:
    """Public keys by the names of their rights."""
    found: dict[str, set[str]] = {}
    for key, name in re.findall(
        r"nkey: (\w+), permissions: \$rights-([\w-]+)", documented[when]["nats-auth"]["users.conf"]
    ):
        found.setdefault(name, set()).add(key)
    return found


def test_a_site_that_joins_changes_no_other_user(documented: dict[str, Secrets]) -> None:
    assert users_of(documented, "joined") == users_of(documented, "cloud")


def test_while_keys_change_both_are_good_and_afterwards_the_new_ones_alone(documented: dict[str, Secrets]) -> None:
    old, both, new = (users_of(documented, when) for when in ("cloud", "rotating", "rotated"))
    assert old.keys() == both.keys() == new.keys()
    for name in old:
        assert both[name] == old[name] | new[name]
        assert not old[name] & new[name]
    assert documented["rotated"]["nats-auth"]["routes.conf"] == documented["cloud"]["nats-auth"]["routes.conf"]


def test_one_that_is_shut_out_gets_another_key_and_nobody_else_does(documented: dict[str, Secrets]) -> None:
    before, after = users_of(documented, "rotated"), users_of(documented, "shut-out")
    assert {name for name in before if before[name] != after[name]} == {"verifier-1"}
    assert not before["verifier-1"] & after["verifier-1"]
    seeds = documented["shut-out"]["nkeys-verifiers"]
    assert {public_key(seeds["verifier-1"])} == after["verifier-1"]


def test_one_is_shut_out_where_keys_never_changed_before(tmp_path: Path) -> None:
    found = run_commands(tmp_path, ("cloud", "shut-out"))
    before, after = users_of(found, "cloud"), users_of(found, "shut-out")
    assert {name for name in before if before[name] != after[name]} == {"verifier-1"}


def test_a_site_that_joins_and_keys_that_change_shut_out_no_drafter_of_an_api_key(tmp_path: Path) -> None:
    before = users_of(run_commands(tmp_path, ("cloud", OWN_DRAFTER)), OWN_DRAFTER)["key-alice-laptop"]
    assert len(before) == 1
    for when, found in run_commands(tmp_path, ("joined", "rotating", "rotated", "shut-out")).items():
        assert users_of({when: found}, when)["key-alice-laptop"] == before, when


def test_the_commands_that_add_a_drafter_replace_its_key_and_take_away_what_is_no_longer_listed(tmp_path: Path) -> None:
    first, again = (run_commands(tmp_path, clouds)[OWN_DRAFTER] for clouds in (("cloud", OWN_DRAFTER), (OWN_DRAFTER,)))
    for found in (first, again):
        (key,) = users_of({"": found}, "")["key-alice-laptop"]
        assert f'\nkey-alice-laptop = "{key}"\n' in found["gateway-keys"]["keys.toml"]
    old, new = (users_of({"": found}, "") for found in (first, again))
    assert {name for name in old if old[name] != new[name]} == {"key-alice-laptop"}
    assert old["key-alice-laptop"].isdisjoint(new["key-alice-laptop"])
    file = tmp_path / "dsd-keys/cloud/keys.toml"
    file.write_text(re.sub("key-alice-laptop = .*\n", "", file.read_text()))
    users = users_of(run_commands(tmp_path, ("joined",)), "joined")
    assert users == {name: keys for name, keys in new.items() if name != "key-alice-laptop"}


def test_the_pod_of_a_compromised_key_is_one_that_runs(built: Built) -> None:
    (name,) = re.findall(r"delete pod ([\w-]+)", DOCUMENT.read_text())
    verifier = the(built("cloud"), "StatefulSet", "verifier")
    assert name in [f"verifier-{number}" for number in range(verifier["spec"]["replicas"])]


def test_after_keys_changed_a_site_joins_and_keys_change_again(tmp_path: Path) -> None:
    found = run_commands(tmp_path / "first", ("cloud", "rotating", "rotated", "joined", "edge"))
    assert users_of(found, "joined") == users_of(found, "rotated")
    assert found["edge"]["nats-auth"]["ca.crt"]
    again = run_commands(tmp_path / "again", ("cloud", "edge", "rotating", "rotated", "rotating", "site rotating"))
    leaf = again["site rotating"]["nats-auth"]["leaf-key.conf"].removeprefix("nkey: ").strip()
    both = users_of(again, "rotating")
    assert public_key(leaf) in both["site-a"]
    assert len(both["site-a"]) == 2, "the old key of each, and no older one"
    assert again["site rotating"]["nkeys-drafters"] != again["edge"]["nkeys-drafters"]


def test_keys_do_not_change_while_they_are_changing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_commands(tmp_path, ("cloud", "rotating", "rotating"))
