"""Real nats-servers of the overlays take new users, rights, keys and certificates while they run.

Invariant: whoever is not concerned keeps its connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from nats.aio.client import Client

from services.local.nats_server import find_binary
from services.local.nats_users import new_seed, rights_file, routes_file, write_keys
from tests.k8s.joined import HUB
from tests.k8s.machine import SITE, Machine
from tests.k8s.manifests import K8S, Secrets
from tests.peers import until
from tests.plugins.nats import NatsServer

pytestmark = pytest.mark.timeout(120)

BASE = [K8S / f"base/nats/{kind}.conf" for kind in ("gateways", "controllers", "verifiers", "drafters")]
RIGHTS = {
    "dev": BASE,
    "cloud": [*BASE[:3], K8S / "overlays/cloud/sites.conf"],
    "edge": [K8S / "overlays/edge/drafters.conf"],
}
CHANGED = {"dev": "verifiers/verifier-2", "cloud": "verifiers/verifier-2", "edge": "drafters/site-a-drafter-0"}
UNCHANGED = {"dev": "gateways/gateway", "cloud": "gateways/gateway", "edge": "drafters/site-a-drafter-1"}
NUMBER = {"dev": 0, "cloud": HUB, "edge": 0}


class User:
    """A connection with a key, and how often it was lost."""

    def __init__(self) -> None:
        self.client = Client()
        self.num_losses = 0

    async def connect(self, server: NatsServer, seed: Path | None) -> None:
        await self.client.connect(
            server.url,
            nkeys_seed=str(seed) if seed else None,
            allow_reconnect=False,
            connect_timeout=20,
            closed_cb=self._lose,
        )

    async def _lose(self) -> None:
        self.num_losses += 1

    async def is_let_in(self) -> bool:
        await self.client.flush(20)
        return self.client.is_connected and self.num_losses == 0

    async def until_heard_by(self, other: User, subject: str) -> None:
        """Speaks again and again until the other hears it: interest takes its time from server to server."""
        heard = asyncio.Event()

        async def hear(_: object) -> None:
            heard.set()

        subscription = await other.client.subscribe(subject, cb=hear)
        async with asyncio.timeout(20):
            while not heard.is_set():
                await self.client.publish(subject, b"")
                await asyncio.sleep(0.05)
        await subscription.unsubscribe()


@asynccontextmanager
async def connected(server: NatsServer, seed: Path | None) -> AsyncIterator[User]:
    user = User()
    await user.connect(server, seed)
    try:
        yield user
    finally:
        await user.client.close()


async def refused(server: NatsServer, seed: Path) -> None:
    user = User()
    with pytest.raises(Exception, match=r"(?i)authorization"):
        await user.connect(server, seed)
    await user.client.close()


def replace(server: NatsServer, files: Mapping[str, str]) -> None:
    """As the kubelet does: whoever reads a file sees the old or the new one."""
    for name, content in files.items():
        (server.folder / f"{name}.new").write_text(content)
        (server.folder / f"{name}.new").replace(server.folder / name)


def logged(server: NatsServer, text: str) -> int:
    return sum(text in line for line in server.log)


def keys_of(name: str, folder: Path) -> dict[str, str]:
    write_keys(RIGHTS[name], folder, also=None)
    return {"users.conf": (folder / "users.conf").read_text()}


def certificate(ca: trustme.CA) -> dict[str, str]:
    issued = ca.issue_cert("localhost")
    return {
        "tls.crt": issued.cert_chain_pems[0].bytes().decode(),
        "tls.key": issued.private_key_pem.bytes().decode(),
    }


@pytest.mark.parametrize("name", ["dev", "cloud", "edge"])
async def test_a_new_key_is_let_in_the_old_one_is_shut_out_and_nobody_else_notices(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    server = machine.start(name, NUMBER[name], keys_of(name, keys))
    machine.watch(name, server)
    changed, unchanged, old = keys / CHANGED[name], keys / UNCHANGED[name], tmp_path / "old"
    async with connected(server, changed) as shut_out, connected(server, unchanged) as other:
        changed.rename(old)
        replace(server, keys_of(name, keys))
        await until(lambda: shut_out.num_losses == 1)
        await refused(server, old)
        async with connected(server, changed) as let_in:
            assert await let_in.is_let_in()
        assert await other.is_let_in()


async def test_a_file_that_nats_does_not_take_changes_nothing_until_a_good_one_follows(
    machine: Machine, tmp_path: Path
) -> None:
    keys, old = tmp_path / "keys", tmp_path / "old"
    keys.mkdir()
    good = keys_of("dev", keys)
    server = machine.start("dev", changed=good)
    machine.watch("dev", server)
    async with connected(server, keys / CHANGED["dev"]) as user:
        broken = good["users.conf"].replace("$rights-gateway,", "$rights-nobody,")
        assert broken != good["users.conf"]
        replace(server, {"users.conf": broken})
        await until(lambda: logged(server, "Failed to reload server configuration") == 1)
        assert await user.is_let_in()
        (keys / CHANGED["dev"]).rename(old)
        replace(server, keys_of("dev", keys))
        await until(lambda: user.num_losses == 1)
    async with connected(server, keys / CHANGED["dev"]) as let_in:
        assert await let_in.is_let_in()


class Sites:
    """A cloud's server, watched, with a CA and users for sites."""

    def __init__(self, machine: Machine, folder: Path, sites: list[str]) -> None:
        self._machine = machine
        self._keys = folder / "cloud-keys"
        self._keys.mkdir()
        self.ca = trustme.CA()
        made = self.users(sites) | certificate(self.ca) | {"routes.conf": routes_file([])}
        self.hub = machine.start("cloud", HUB, made)
        machine.watch("cloud", self.hub)

    def users(self, sites: list[str], also: Path | None = None) -> dict[str, str]:
        rights = self._keys / "sites.conf"
        rights.write_text("\n".join(rights_file("drafter", [f"{site}-drafter-0"], site) for site in sites))
        write_keys([BASE[0], rights], self._keys, also)
        return {"users.conf": (self._keys / "users.conf").read_text()}

    def key(self, site: str) -> Path:
        return self._keys / "sites" / site

    def leaf_key(self, site: str) -> dict[str, str]:
        return {"leaf-key.conf": f"nkey: {self.key(site).read_text()}"}

    def join(self, site: str, number: int) -> NatsServer:
        changed = {"ca.crt": self.ca.cert_pem.bytes().decode(), "users.conf": ""} | self.leaf_key(site)
        server = self._machine.start("edge", number, changed, site)
        self._machine.watch("edge", server)
        return server

    async def reaches(self, server: NatsServer, site: str) -> None:
        """Returns when a gateway of the cloud is heard by a drafter at the site, whose server asks nobody for a key."""
        async with connected(self.hub, self._keys / "gateways/gateway") as gateway, connected(server, None) as drafter:
            await gateway.until_heard_by(drafter, f"dsd.v1.drafter.{site}-drafter-0.x.close.gateway.x")


def num_ended(server: NatsServer) -> int:
    return logged(server, "Leafnode connection closed")


async def test_a_site_joins_a_running_cloud_and_the_others_stay(machine: Machine, tmp_path: Path) -> None:
    """Users and rights come in one file, so no server ever has one without the other."""
    cloud = Sites(machine, tmp_path, [SITE])
    first = cloud.join(SITE, 0)
    await cloud.reaches(first, SITE)
    replace(cloud.hub, cloud.users([SITE, "site-b"]))
    await cloud.reaches(cloud.join("site-b", 1), "site-b")
    await cloud.reaches(first, SITE)
    assert num_ended(first) == 0


async def test_a_site_s_key_changes_without_a_restart_of_either_server(machine: Machine, tmp_path: Path) -> None:
    cloud = Sites(machine, tmp_path, [SITE])
    site = cloud.join(SITE, 0)
    await cloud.reaches(site, SITE)
    old = tmp_path / "old.conf"
    old.write_text(cloud.users([SITE])["users.conf"])
    cloud.key(SITE).write_text(new_seed())
    replace(cloud.hub, cloud.users([SITE], also=old))
    await until(lambda: logged(cloud.hub, "Reloaded: authorization nkey users") == 1)
    replace(site, cloud.leaf_key(SITE))
    await until(lambda: num_ended(site) == 1)
    await cloud.reaches(site, SITE)
    replace(cloud.hub, cloud.users([SITE]))
    await until(lambda: logged(cloud.hub, "Reloaded: authorization nkey users") == 2)
    await cloud.reaches(site, SITE)
    assert num_ended(site) == 1


async def test_a_renewed_certificate_is_shown_to_newcomers_and_those_that_are_joined_stay(
    machine: Machine, tmp_path: Path
) -> None:
    cloud = Sites(machine, tmp_path, [SITE, "site-b"])
    site = cloud.join(SITE, 0)
    await cloud.reaches(site, SITE)
    before, renewed = await shown(cloud.hub), certificate(cloud.ca)
    replace(cloud.hub, renewed)
    async with asyncio.timeout(20):
        while (now := await shown(cloud.hub)) == before:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.05)
    assert now == ssl.PEM_cert_to_DER_cert(renewed["tls.crt"])
    await cloud.reaches(cloud.join("site-b", 1), "site-b")
    await cloud.reaches(site, SITE)
    assert num_ended(site) == 0


async def test_a_site_takes_the_certificate_of_another_ca_without_a_restart(machine: Machine, tmp_path: Path) -> None:
    cloud, other = Sites(machine, tmp_path, [SITE]), trustme.CA()
    site = cloud.join(SITE, 0)
    await cloud.reaches(site, SITE)
    num_reloads = logged(site, "Reloaded server configuration")
    replace(site, {"ca.crt": other.cert_pem.bytes().decode()})
    await until(lambda: logged(site, "Reloaded server configuration") > num_reloads)
    assert num_ended(site) == 0
    replace(cloud.hub, certificate(other))
    cloud.hub.stop(kill=True)
    cloud.hub.start()
    await cloud.reaches(site, SITE)


async def shown(hub: NatsServer) -> bytes:
    """The certificate that the port for leaf nodes shows. The server speaks first, in clear text."""
    (listening,) = [line for line in hub.log if "Listening for leafnode connections on" in line]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(listening.rpartition(":")[2]))
    await reader.readline()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await writer.start_tls(context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(found)


async def test_the_password_of_the_routes_changes_and_clients_stay(
    machine: Machine, tmp_path: Path, documented: dict[str, Secrets]
) -> None:
    servers = [machine.start("cloud", number) for number in range(3)]
    gateway, verifier = tmp_path / "gateway", tmp_path / "verifier-0"
    gateway.write_text(documented["cloud"]["nkeys-gateways"]["gateway"])
    verifier.write_text(documented["cloud"]["nkeys-verifiers"]["verifier-0"])
    old = (servers[0].folder / "routes.conf").read_text()
    new = old.replace(password_in(old), password_in(routes_file([])))
    async with connected(servers[0], verifier) as speaker, connected(servers[1], gateway) as hearer:
        for server in servers:
            replace(server, {"routes.conf": new})
            machine.watch("cloud", server)
        await until(lambda: all(logged(server, "Reloaded server configuration") for server in servers))
        servers[2].stop(kill=True)
        servers[2].start()  # it knows the new password alone
        async with connected(servers[2], gateway) as newcomer:
            await speaker.until_heard_by(newcomer, "dsd.v1.heartbeat.verifier.verifier-0.x")
        await speaker.until_heard_by(hearer, "dsd.v1.heartbeat.verifier.verifier-0.x")
        assert await speaker.is_let_in()
        assert await hearer.is_let_in()


def password_in(routes: str) -> str:
    return routes.partition('password: "')[2].partition('"')[0]


# Runs what is to run in a pod on this machine: arguments are … exec POD -c nats -- COMMAND. `logs` waits for the file.
KUBECTL = """\
import json, os, pathlib, subprocess, sys, time
pods = json.loads(os.environ["PODS"])  # name: folder and port of the monitor, or null where nobody answers
if "get" in sys.argv:
    print(*pods, sep="\\n")
elif "exec" in sys.argv:
    folder, port = pods[sys.argv[sys.argv.index("exec") + 1]] or sys.exit("no answer")
    words = sys.argv[sys.argv.index("--") + 1 :]
    for place, here in (("/etc/nats", folder), ("/run/nats", folder), (":8222", f":{port}")):
        words = [word.replace(place, here) for word in words]
    sys.exit(subprocess.run(words).returncode)
elif "logs" in sys.argv:
    folder, _ = pods[sys.argv[sys.argv.index("logs") + 1]] or sys.exit("no answer")
    while not (log := pathlib.Path(folder, "log")).exists():
        time.sleep(0.05)
    print(log.read_text())
else:
    assert "annotate" in sys.argv, sys.argv
"""


class Operator:
    """Keys of the dev overlay, and who changes them, with a server that nobody watches."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._folder = folder
        self.keys, self.old = folder / "keys", folder / "old"
        self.keys.mkdir()
        self.server = machine.start("dev", changed=keys_of("dev", self.keys))

    def change_a_key(self) -> dict[str, str]:
        (self.keys / CHANGED["dev"]).rename(self.old)
        return keys_of("dev", self.keys)

    async def reload(self, *others: str) -> asyncio.subprocess.Process:
        """Starts the script. others: pods that do not answer."""
        (listening,) = [line for line in self.server.log if "Starting http monitor on" in line]
        pods = dict.fromkeys(others) | {"pod/nats-0": (str(self.server.folder), listening.rpartition(":")[2])}
        kubectl = self._folder / "bin" / "kubectl"
        kubectl.parent.mkdir()
        kubectl.write_text(f"#!{sys.executable}\n{KUBECTL}")
        sleep = kubectl.with_name("sleep")
        sleep.write_text("#!/bin/sh\ntouch $0.called\nexec /bin/sleep 0.05\n")
        for program in (kubectl, sleep):
            program.chmod(0o755)
        path = os.pathsep.join([str(kubectl.parent), str(find_binary().parent), os.environ["PATH"]])
        return await asyncio.create_subprocess_exec(
            K8S / "reload-nats.sh",
            self.keys / "users.conf",
            env=os.environ | {"PATH": path, "PODS": json.dumps(pods)},
            stderr=asyncio.subprocess.PIPE,
        )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """The status, and what it told."""
    async with asyncio.timeout(30):
        _, told = await process.communicate()
    return process.returncode, told.decode()


async def test_an_operator_s_command_returns_when_all_servers_have_read_the_new_file(
    machine: Machine, tmp_path: Path
) -> None:
    operator = Operator(machine, tmp_path)
    server = operator.server
    async with (
        connected(server, operator.keys / CHANGED["dev"]) as shut_out,
        connected(server, operator.keys / UNCHANGED["dev"]) as other,
    ):
        changed = operator.change_a_key()
        process = await operator.reload()
        await until((tmp_path / "bin/sleep.called").exists)  # the kubelet has not brought the file yet
        assert logged(server, "Reloaded server configuration") == 0
        replace(server, changed)
        assert await ended(process) == (0, "")
        await refused(server, operator.old)
        await until(lambda: shut_out.num_losses == 1)
        assert await other.is_let_in()


async def test_it_fails_with_the_server_s_reason_where_one_refuses_the_file(machine: Machine, tmp_path: Path) -> None:
    operator = Operator(machine, tmp_path)
    users = operator.keys / "users.conf"
    users.write_text(users.read_text().replace("$rights-gateway,", "$rights-nobody,"))
    replace(operator.server, {"users.conf": users.read_text()})
    process = await operator.reload()
    await until(lambda: logged(operator.server, "Failed to reload server configuration") == 1)
    replace(operator.server, {"log": "\n".join(operator.server.log)})
    status, told = await ended(process)
    assert status == 1
    assert "pod/nats-0 has not read /etc/nats/users.conf" in told
    assert "rights-nobody" in told


async def test_a_server_that_does_not_answer_keeps_no_other_from_reading(machine: Machine, tmp_path: Path) -> None:
    operator = Operator(machine, tmp_path)
    async with connected(operator.server, operator.keys / CHANGED["dev"]) as shut_out:
        replace(operator.server, operator.change_a_key())
        status, told = await ended(await operator.reload("pod/nats-9"))
        await until(lambda: shut_out.num_losses == 1)
    assert status == 1
    assert "pod/nats-9 has not read" in told
    assert "pod/nats-0" not in told
