"""Real nats-servers of the overlays take new users, rights, keys and certificates while they run, by what runs in the pod.

Invariant: whoever is not concerned keeps its connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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

    async def connect(self, server: NatsServer, seed: Path) -> None:
        await self.client.connect(
            server.url, nkeys_seed=str(seed), allow_reconnect=False, connect_timeout=20, closed_cb=self._lose
        )

    async def _lose(self) -> None:
        self.num_losses += 1

    async def is_let_in(self) -> bool:
        await self.client.flush(20)
        return self.client.is_connected and self.num_losses == 0


@asynccontextmanager
async def connected(server: NatsServer, seed: Path) -> AsyncIterator[User]:
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


def num_joined(server: NatsServer) -> int:
    return logged(server, "Leafnode connection created") - logged(server, "Leafnode connection closed")


async def test_a_site_joins_a_running_cloud_and_the_others_stay(machine: Machine, tmp_path: Path) -> None:
    """Users and rights come in one file, so no server ever has one without the other."""
    cloud = Sites(machine, tmp_path, [SITE])
    first = cloud.join(SITE, 0)
    await until(lambda: num_joined(cloud.hub) == 1)
    replace(cloud.hub, cloud.users([SITE, "site-b"]))
    cloud.join("site-b", 1)
    await until(lambda: num_joined(cloud.hub) == 2)
    assert logged(first, "Leafnode connection closed") == 0


async def test_a_site_s_key_changes_without_a_restart_of_either_server(machine: Machine, tmp_path: Path) -> None:
    cloud = Sites(machine, tmp_path, [SITE])
    site = cloud.join(SITE, 0)
    await until(lambda: num_joined(cloud.hub) == 1)
    old = tmp_path / "old.conf"
    old.write_text(cloud.users([SITE])["users.conf"])
    cloud.key(SITE).write_text(new_seed())
    replace(cloud.hub, cloud.users([SITE], also=old))
    await until(lambda: logged(cloud.hub, "Reloaded: authorization nkey users") == 1)
    replace(site, cloud.leaf_key(SITE))
    await until(lambda: logged(site, "Leafnode connection created") == 2)
    replace(cloud.hub, cloud.users([SITE]))
    await until(lambda: logged(cloud.hub, "Reloaded: authorization nkey users") == 2)
    assert num_joined(cloud.hub) == num_joined(site) == 1


async def test_a_renewed_certificate_is_shown_to_newcomers_and_those_that_are_joined_stay(
    machine: Machine, tmp_path: Path
) -> None:
    cloud = Sites(machine, tmp_path, [SITE, "site-b"])
    site = cloud.join(SITE, 0)
    await until(lambda: num_joined(cloud.hub) == 1)
    before, renewed = await shown(cloud.hub), certificate(cloud.ca)
    replace(cloud.hub, renewed)
    async with asyncio.timeout(20):
        while (now := await shown(cloud.hub)) == before:
            await asyncio.sleep(0.05)
    assert now == ssl.PEM_cert_to_DER_cert(renewed["tls.crt"])
    cloud.join("site-b", 1)
    await until(lambda: num_joined(cloud.hub) == 2)
    assert logged(site, "Leafnode connection closed") == 0


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
    seed = tmp_path / "gateway.seed"
    seed.write_text(documented["cloud"]["nkeys-gateways"]["gateway"])
    old = (servers[0].folder / "routes.conf").read_text()
    password = routes_file([]).partition('password: "')[2].partition('"')[0]
    new = old.replace(old.partition('password: "')[2].partition('"')[0], password)
    async with connected(servers[0], seed) as speaker, connected(servers[2], seed) as hearer:
        heard = asyncio.Event()

        async def hear(_: object) -> None:
            heard.set()

        await hearer.client.subscribe("dsd.v1.heartbeat.verifier.>", cb=hear)
        for server in servers:
            replace(server, {"routes.conf": new})
            machine.watch("cloud", server)
        await until(lambda: all(logged(server, "Reloaded: cluster") for server in servers))
        assert await speaker.is_let_in()
        assert await hearer.is_let_in()


# Runs what is to run in a pod on this machine: arguments are … exec POD -c nats -- COMMAND.
KUBECTL = """\
import json, os, pathlib, subprocess, sys
pods = json.loads(os.environ["PODS"])  # name: folder
if "get" in sys.argv:
    print(*pods, sep="\\n")
elif "exec" in sys.argv:
    folder = pods[sys.argv[sys.argv.index("exec") + 1]]
    pathlib.Path(folder, "asked").touch()
    command = [word.replace("/etc/nats", folder).replace("/run/nats", folder) for word in sys.argv[sys.argv.index("--") + 1 :]]
    sys.exit(subprocess.run(command).returncode)
else:
    assert "annotate" in sys.argv, sys.argv
"""


async def test_an_operator_s_command_returns_when_all_servers_were_told_to_read_the_new_file(
    machine: Machine, tmp_path: Path
) -> None:
    keys, old = tmp_path / "keys", tmp_path / "old"
    keys.mkdir()
    server = machine.start("dev", changed=keys_of("dev", keys))  # and nobody watches
    (server.folder / "nats.pid").write_text(str(server.pid))
    async with connected(server, keys / CHANGED["dev"]) as shut_out, connected(server, keys / UNCHANGED["dev"]) as other:
        (keys / CHANGED["dev"]).rename(old)
        changed = keys_of("dev", keys)
        process = await reload_nats(keys / "users.conf", {"pod/nats-0": server.folder}, tmp_path)
        await until((server.folder / "asked").exists)
        assert process.returncode is None, "the kubelet has not brought the file yet"
        replace(server, changed)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        await until(lambda: shut_out.num_losses == 1)
        await refused(server, old)
        assert await other.is_let_in()


async def reload_nats(file: Path, pods: Mapping[str, Path], folder: Path) -> asyncio.subprocess.Process:
    kubectl = folder / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f"#!{sys.executable}\n{KUBECTL}")
    kubectl.chmod(0o755)
    path = os.pathsep.join([str(kubectl.parent), str(find_binary().parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PODS": json.dumps({name: str(place) for name, place in pods.items()})}
    return await asyncio.create_subprocess_exec(K8S / "reload-nats.sh", file, env=env)
