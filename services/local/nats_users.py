"""NATS users of DSD: their rights and keys, and the password of the cluster's routes (docs/deploy.md).

    python -m services.local.nats_users rights verifier verifier-0 verifier-1 > verifiers.conf
    python -m services.local.nats_users keys gateways.conf verifiers.conf --out FOLDER
    python -m services.local.nats_users routes nats-0.nats-pods:6222 nats-1.nats-pods:6222 > routes.conf

Invariant: a user's rights follow from its kind and name (table in docs/protocol.md). No user has a wildcard in place of
a sender's name, or a shared inbox. The user of a leaf node may not connect as a client, nor the others as a leaf node.
Every name is a valid and unique instance name. A seed is written only to a file of its owner. Drafters that belong to
the API keys of FOLDER/keys.toml are users too, whenever keys are made; their seeds are their users' alone.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.protocol.subjects import OWNED, PREFIX, is_owned, new_instance_id
from shared.runtime.nats_keys import new_seed, public_key

PASSWORD_BYTES = 32
PUBLIC_KEY = "U[A-Z2-7]{55}"

_RIGHTS_OF = re.compile(r"^\s*rights-(.*?)\s*[:=]?\s*\{", re.MULTILINE)  # any name that nats-server would accept
API_KEYS = "keys.toml"  # the gateways' key file, beside the keys of NATS

_USER_LINE = re.compile(r"^ *\{nkey: .+ permissions: \$rights-(?P<name>[\w-]+).*\}$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects, after PREFIX, that a user may publish and subscribe. NAME is the user's name."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


KINDS = {
    "gateway": Rights(
        publish=(
            "verifier.*.*.open.NAME.*",
            "verifier.*.*.poll.NAME.*",
            "verifier.*.*.close.NAME.*",
            "drafter.*.*.speculate.NAME.*",
            "drafter.*.*.close.NAME.*",
            "heartbeat.gateway.NAME.*",
        ),
        subscribe=(
            "gateway.NAME.*.>",
            "heartbeat.verifier.>",
            "heartbeat.drafter.>",
            "heartbeat.controller.>",
            "drafter.*.*.window.>",
        ),
    ),
    "drafter": Rights(
        publish=(
            "verifier.*.*.draft.NAME.*",
            "gateway.*.*.failure.NAME.*",
            "controller.*.*.report.NAME.*",
            "heartbeat.drafter.NAME.*",
        ),
        subscribe=("drafter.NAME.*.>", "heartbeat.controller.>"),
    ),
    "verifier": Rights(
        publish=(
            "gateway.*.*.opened.NAME.*",
            "gateway.*.*.verdict.NAME.*",
            "gateway.*.*.failure.NAME.*",
            "drafter.*.*.verdict.NAME.*",
            "drafter.*.*.failure.NAME.*",
            "heartbeat.verifier.NAME.*",
        ),
        subscribe=("verifier.NAME.*.>", "heartbeat.gateway.>"),
    ),
    "controller": Rights(
        publish=("drafter.*.*.window.NAME.*", "heartbeat.controller.NAME.*"),
        subscribe=("controller.NAME.*.>", "heartbeat.verifier.>"),
    ),
}


def rights_file(kind: str, names: list[str], together: str = "", connections: str = "STANDARD") -> str:
    """A file for nats.conf to include: the rights of each name, or of all names for the one user `together`, which is
    a leaf node's. connections: the kinds that the others may make.

    Raises ValueError for an invalid or repeated name.
    """
    for name in (*names, together) if together else names:
        new_instance_id(name)
        if names.count(name) > 1:
            raise ValueError(f"the name {name} appears twice")
    users = {together: names} if together else {name: [name] for name in names}
    merged, connections = (f" --together {together}", "LEAFNODE") if together else ("", connections)
    command = f"python -m services.local.nats_users rights {kind} {' '.join(names)}{merged}"
    blocks = [_rights_block(user, KINDS[kind], members, connections) for user, members in users.items()]
    return "\n".join([f"# What a {kind} may publish and subscribe (docs/protocol.md). Made by: {command}", *blocks])


def own_drafters(api_keys: Path) -> dict[str, str]:
    """The drafters that belong to the API keys of a file, with their public keys. Raises ValueError, OSError."""
    try:
        entries = tomllib.loads(api_keys.read_text(encoding="utf-8"))
        found = {name: key for entry in entries.values() for name, key in entry.get("own_drafters", {}).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{api_keys} is no file of API keys: {error}") from error
    for name, key in found.items():
        if not is_owned(name) or not re.fullmatch(PUBLIC_KEY, str(key)):
            raise ValueError(f"{api_keys}: own_drafters must name drafters {OWNED}…, with the public NKey of each")
    return found


def _rights_block(user: str, rights: Rights, names: list[str], connections: str) -> str:
    lines = [f"rights-{user}: {{"]
    for verb, subjects in (("publish", rights.publish), ("subscribe", rights.subscribe)):
        own = dict.fromkeys(subject.replace("NAME", name) for name in names for subject in subjects)
        lines += [f"  {verb}: [", *(f'    "{PREFIX}.{subject}"' for subject in own), "  ]"]
    return "\n".join([*lines, "}", f"connections-{user}: [{connections}]", ""])


def write_keys(rights: list[Path], out: Path, also: Path | None, api_keys: Path | None = None) -> None:
    """Makes missing keys: the seeds out/<file of rights>/<name>, and out/users.conf with rights and public keys.

    One file has both, so that a server never reads users without their rights. also: an earlier users.conf, whose keys
    of these users stay valid while services change to the new ones. api_keys: the gateways' key file, whose drafters
    are users too.
    Raises ValueError as `users_in` and `own_drafters` do, before anything is written.
    """
    found, owned = users_in(rights), own_drafters(api_keys) if api_keys else {}
    if both := next(filter(found.__contains__, owned), None):
        raise ValueError(f"the name {both} appears twice: in {found[both]} and in {api_keys}")
    texts = {path: path.read_text() for path in rights}
    lines = [
        _user_line(name, public_key(_seed_in(out / path.stem / name)), texts[path]) for name, path in found.items()
    ]
    of_owned = rights_file("drafter", list(owned), connections="STANDARD, WEBSOCKET").partition("\n")[2]
    lines += [_user_line(name, key, of_owned) for name, key in owned.items()]
    lines += [each[0] for each in _USER_LINE.finditer(also.read_text()) if each["name"] in found] if also else []
    users = [
        "# The users of a DSD: their rights and their public keys. Made by services/local/nats_users.py.",
        *texts.values(),
        *([f"# Drafters of API keys, in the gateways' {API_KEYS}.\n{of_owned}"] if owned else []),
        "authorization {",
        "  users: [",
        *dict.fromkeys(lines),
        "  ]",
        "}",
        "",
    ]
    (out / "users.conf").write_text("\n".join(users))


def users_in(rights: Iterable[Path]) -> dict[str, Path]:
    """The users in files of rights, with their file. Raises ValueError for an invalid or repeated name."""
    found: dict[str, Path] = {}
    for path in rights:
        for name in _RIGHTS_OF.findall(path.read_text()):
            try:
                new_instance_id(name)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if name in found:
                raise ValueError(f"the name {name} appears twice: in {found[name]} and in {path}")
            found[name] = path
    return found


def _user_line(name: str, nkey: str, rights: str) -> str:
    """Rights written by hand may say nothing about connections: then all kinds are allowed."""
    connections = f", allowed_connection_types: $connections-{name}" if f"connections-{name}:" in rights else ""
    return f"    {{nkey: {nkey}, permissions: $rights-{name}{connections}}}"


def _seed_in(path: Path) -> str:
    """The seed in a file; a missing file is made with a new seed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_seed())
    return path.read_text().strip()


def routes_file(addresses: Iterable[str]) -> str:
    """The file that cluster.conf includes: a new password for routes, and the servers' addresses with it."""
    password = secrets.token_hex(PASSWORD_BYTES)
    routes = [f'  "nats://route:{password}@{address}"' for address in addresses]
    return "\n".join([f'authorization {{user: route, password: "{password}"}}', "routes: [", *routes, "]", ""])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m services.local.nats_users", description="NATS users of DSD (docs/deploy.md)."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rights = commands.add_parser("rights", help="print the rights of instances of a kind, one user for each name")
    rights.add_argument("kind", choices=KINDS)
    rights.add_argument("names", nargs="+", metavar="NAME")
    rights.add_argument(
        "--together", default="", metavar="USER", help="one user for all names, as for the leaf node of a site"
    )
    told = f"make keys for all users in files of rights; users.conf has them, and the drafters of FOLDER/{API_KEYS}"
    keys = commands.add_parser("keys", help=told)
    keys.add_argument("rights", nargs="+", type=Path, metavar="FILE")
    keys.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    keys.add_argument("--also", type=Path, metavar="FILE", help="earlier users.conf, whose keys stay valid")
    routes = commands.add_parser("routes", help="print routes.conf with a new password")
    routes.add_argument("addresses", nargs="+", metavar="HOST:PORT")
    asked = parser.parse_args(argv)
    try:
        _run(asked)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _run(asked: argparse.Namespace) -> None:
    """Runs the command. Raises ValueError or OSError for unusable arguments."""
    if asked.command == "rights":
        sys.stdout.write(rights_file(asked.kind, asked.names, asked.together))
    elif asked.command == "keys":
        for path in asked.rights:
            if not users_in([path]):
                raise ValueError(f"{path} holds no rights of any user")
        api_keys = asked.out / API_KEYS
        write_keys(asked.rights, asked.out, asked.also, api_keys if api_keys.exists() else None)
    else:
        sys.stdout.write(routes_file(asked.addresses))


if __name__ == "__main__":
    main(sys.argv[1:])
