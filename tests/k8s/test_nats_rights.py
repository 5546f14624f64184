"""Every user tries every subject of every role on a real nats-server, and is let or denied as docs/protocol.md says."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from services.local.nats_server import free_port, write_secured
from services.local.nats_users import KINDS
from tests.k8s.machine import Machine
from tests.k8s.manifests import K8S, Secrets
from tests.plugins.nats import NatsServer

NAMES = {
    "gateway": ["gateway"],
    "controller": ["controller"],
    "verifier": ["verifier-0", "verifier-1"],
    "drafter": ["drafter-0", "drafter-1"],
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
SITE = ("site-a-drafter-0", "site-a-drafter-1")
MEMBERS = {name: (name,) for name in (*KIND_OF, *SITE)} | {"site-a": SITE}  # whose rights a user has
UNHEARD_OF = (
    "dsd.v1.x", "dsd.v2.heartbeat.gateway.x", "x", "_INBOX.x.y", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$JS.API.INFO", "$JS.API.STREAM.CREATE.x", "$JS.API.CONSUMER.CREATE.x.y", "$JS.ACK.x", "$JS.FC.x", "$KV.x.y",
    "$O.x.C.y",
)  # fmt: skip
LAST = "last"  # that nobody may use either
TOO_WIDE = (
    ">", "dsd.>", "dsd.v1.>", "dsd.v1.*.*.*.>", "dsd.v1.drafter.>", "dsd.v1.gateway.>", "dsd.v1.verifier.>",
    "dsd.v1.*.drafter-1.*.>", "dsd.v1.drafter.*.*.verdict.>", "_INBOX.>", "_INBOX.x.*", "$SYS.>",
    "$SYS.ACCOUNT.*.CONNECT",
    "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$KV.>", "*", "*.*",
)  # fmt: skip


def patterns(verb: str, name: str) -> list[str]:
    """What the table lets a user publish or subscribe; a site's leaf may what its drafters may."""
    rights = [(member, getattr(KINDS[KIND_OF.get(member, "drafter")], verb)) for member in MEMBERS[name]]
    return ["dsd.v1." + subject.replace("NAME", member) for member, subjects in rights for subject in subjects]


def published() -> list[str]:
    """A subject for each right to speak of each user, and some that nobody may use."""
    rights = [pattern for name in MEMBERS for pattern in patterns("publish", name)]
    return [*dict.fromkeys(right.replace("*", "x") for right in rights), *UNHEARD_OF]


def subscribed() -> list[str]:
    """Each right to hear of each user, and some that nobody has."""
    return [*dict.fromkeys(pattern for name in MEMBERS for pattern in patterns("subscribe", name)), *TOO_WIDE]


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that the second stands for is one of the first."""
    wide, narrow = pattern.split("."), subject.split(".")
    for place, token in enumerate(wide):
        if token == ">":
            return len(narrow) > place
        if place >= len(narrow) or narrow[place] == ">" or (token != "*" and token != narrow[place]):
            return False
    return len(narrow) == len(wide)


def denied(verb: str, name: str, subjects: list[str]) -> set[str]:
    """As nats-py tells it, in lower case."""
    rights = patterns(verb, name)
    return {each.lower() for each in subjects if not any(covers(pattern, each) for pattern in rights)}


@dataclass(frozen=True, slots=True)
class Guarded:
    """A running server, and how its users get in."""

    url: str
    seeds: dict[str, Path]
    ca: Path | None = None


def of_manifests(
    folder: Path, machine: Machine, documented: dict[str, Secrets], changed: dict[str, str] | None = None
) -> Guarded:
    """With the configuration and the keys of the overlay for trying out, but for files that are `changed`."""
    keys = K8S / "overlays/dev/example-keys"
    seeds = {name: keys / f"{kind}s" / name for name, kind in KIND_OF.items()}
    return Guarded(machine.start("dev", changed=changed).url, seeds)


def of_a_site(folder: Path, machine: Machine, documented: dict[str, Secrets]) -> Guarded:
    """The site's own server, to its drafters."""
    found = documented["edge"]["nkeys-drafters"]
    for name, seed in found.items():
        (folder / name).write_text(seed)
    return Guarded(machine.start("edge").url, {name: folder / name for name in found})


def of_a_leaf(folder: Path, machine: Machine, documented: dict[str, Secrets]) -> Guarded:
    """A server of the cloud, to who has the key of a site's leaf and might be a client with it."""
    users = documented["cloud"]["nats-auth"]["users.conf"]
    changed = {"users.conf": users.replace("[LEAFNODE]", "[STANDARD]")}
    seed = documented["edge"]["nats-auth"]["leaf-key.conf"].partition("nkey: ")[2].strip()
    (folder / "site-a").write_text(seed)
    return Guarded(machine.start("cloud", changed=changed).url, {"site-a": folder / "site-a"})


def of_a_local_system(folder: Path, machine: Machine, documented: dict[str, Secrets]) -> Guarded:
    """As `python -m services --secure` starts it."""
    folder = folder / "secured"
    access = write_secured(folder, free_port(), NAMES)
    server = NatsServer(folder, (folder / "nats.conf").read_text())
    machine.servers.append(server)
    server.start()
    seeds = {name: Path(settings["DSD_NATS_NKEY_SEED"]) for name, settings in access.settings.items()}
    return Guarded(server.url.replace("nats:", "tls:"), seeds, folder / "ca.crt")


class User:
    """A connection with a user's key, and what the server did not let it do."""

    def __init__(self) -> None:
        self.client = Client()
        self._complaints: list[str] = []

    async def connect(self, server: Guarded, name: str) -> None:
        tls = ssl.create_default_context(cafile=server.ca) if server.ca else None
        await self.client.connect(server.url, nkeys_seed=str(server.seeds[name]), tls=tls, error_cb=self._complain)

    async def _complain(self, error: Exception) -> None:
        self._complaints.append(str(error))

    async def settled(self) -> None:
        """Returns when the server has seen all that was sent: it complains in the order of what it reads."""
        await self.client.publish(LAST, b"")
        async with asyncio.timeout(20):
            while LAST not in self.denied("publish"):  # noqa: ASYNC110  the client sets no event
                await asyncio.sleep(0.01)

    def denied(self, what: str) -> set[str]:
        """The subjects of violations so far."""
        found = re.findall(rf'permissions violation for {what} to "(.+?)"', "\n".join(self._complaints), re.IGNORECASE)
        return set(found)


def test_the_table_denies_far_more_than_it_grants() -> None:
    for name in MEMBERS:
        assert len(denied("publish", name, published())) > len(published()) / 2
        assert len(denied("subscribe", name, subscribed())) > len(subscribed()) / 2
    assert covers("dsd.*.x.>", "dsd.v1.x.y.z")
    assert not covers("dsd.*.x.>", "dsd.v1.x")
    assert not covers("dsd.*", "dsd.>")


@pytest.mark.parametrize("start", [of_manifests, of_a_site, of_a_leaf, of_a_local_system])
async def test_what_is_not_granted_is_denied(
    tmp_path: Path,
    machine: Machine,
    documented: dict[str, Secrets],
    start: Callable[[Path, Machine, dict[str, Secrets]], Guarded],
) -> None:
    server = start(tmp_path, machine, documented)
    for name in server.seeds:
        user = User()
        await user.connect(server, name)
        for subject in published():
            await user.client.publish(subject, b"")
        for subject in subscribed():
            await user.client.subscribe(subject)
            await user.client.subscribe(subject, queue="thieves")  # it would take messages from others
        await user.settled()
        await user.client.close()
        assert user.denied("publish") == denied("publish", name, [*published(), LAST]), name
        assert user.denied("subscription") == denied("subscribe", name, subscribed()), name


async def refuses(url: str, **options: Any) -> None:
    """The server lets nobody in with these options."""
    client = Client()
    with pytest.raises(Exception, match=r"(?i)authorization"):
        await client.connect(url, allow_reconnect=False, connect_timeout=5, **options)
    await client.close()


async def test_the_key_of_a_leaf_opens_no_client_s_port(
    tmp_path: Path, machine: Machine, documented: dict[str, Secrets]
) -> None:
    seed = tmp_path / "site-a"
    seed.write_text(documented["edge"]["nats-auth"]["leaf-key.conf"].partition("nkey: ")[2].strip())
    await refuses(machine.start("cloud").url, nkeys_seed=str(seed))


async def test_nobody_gets_in_without_a_key(tmp_path: Path, machine: Machine, documented: dict[str, Secrets]) -> None:
    server = of_a_local_system(tmp_path, machine, documented)
    await refuses(server.url, tls=ssl.create_default_context(cafile=server.ca))
