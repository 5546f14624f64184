"""Real nats-servers run with the configuration of the builds and the keys that docs/deploy.md makes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from services.local.nats_server import LIMITS, find_binary
from services.local.nats_users import main, rights_file, routes_file
from shared.bus import nats_bus
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Close, Draft, Heartbeat, Message, Service, TokenIds
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.k8s.joined import HUB, with_keys
from tests.k8s.machine import SITE, Built, Machine, here, nats_container
from tests.k8s.manifests import K8S, Secrets
from tests.peers import until
from tests.plugins.nats import NatsServer
from tests.shared.bus.bus_helpers import Heard

pytestmark = pytest.mark.timeout(60)

SESSION = "0123456789abcdef" * 2


@pytest.mark.parametrize("path", sorted(K8S.rglob("nats.conf")), ids=lambda path: str(path.parent.relative_to(K8S)))
def test_a_server_is_named_in_its_configuration_since_one_named_in_its_arguments_can_not_reload(path: Path) -> None:
    assert "server_name: $SERVER_NAME\n" in path.read_text()


class Member:
    """One named instance on a server, with its key."""

    def __init__(self, service: Service, name: str) -> None:
        self.service = service
        self.id = subjects.new_instance_id(name)
        self.heard = Heard()
        self.registry = CollectorRegistry()
        self.bus: Bus

    @property
    def denials(self) -> float:
        return self.registry.get_sample_value("dsd_bus_errors_total", {"kind": "permission violation"}) or 0.0

    async def say(self, to: Member, message: Message) -> None:
        await self.bus.publish(subjects.to(to.service, to.id, type(message), self.id), message)


Join = Callable[..., Awaitable[Member]]


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Join]:
    """join(server, service, name, seed) -> a member that listens to its inbox."""
    members: list[Member] = []

    async def connect(server: NatsServer | Front, service: Service, name: str, seed: str = "") -> Member:
        member, file = Member(service, name), tmp_path / f"{len(members)}.seed"
        file.write_text(seed)
        settings = ServiceSettings(name=name, nats_url=server.url, nats_nkey_seed=str(file) if seed else "")
        member.bus = await asyncio.wait_for(nats_bus.connect(settings, member.id, BusMetrics(member.registry)), 20)
        members.append(member)
        await member.bus.subscribe(subjects.inbox(service, member.id), member.heard)
        return member

    yield connect
    for member in members:
        await member.bus.close()


def seeds_of_dev() -> dict[str, str]:
    folder = K8S / "overlays/dev/example-keys"
    return {file.name: file.read_text() for file in folder.glob("*/*")}


@dataclass(frozen=True, slots=True)
class Front:
    """What a Service of Kubernetes is: an address behind which each connection goes to a server that takes it."""

    url: str


@asynccontextmanager
async def front_of(servers: Sequence[NatsServer]) -> AsyncIterator[Front]:
    ends: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        for server in servers:
            with suppress(ConnectionRefusedError):
                there, back = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
                ends.append(back)
                await asyncio.gather(pump(reader, back), pump(there, writer))
                return
        writer.close()

    listener = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield Front(f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    finally:
        listener.close()
        for end in ends:
            end.close()


async def until_heard(member: Member, say: Callable[[], Awaitable[None]]) -> None:
    """Says something again until a member has heard something: interest takes its time from server to server."""
    async with asyncio.timeout(20):
        while not member.heard.all:
            await say()
            await asyncio.sleep(0.05)


def draft(base: int) -> Draft:
    return Draft(SESSION, 1, 0, base, TokenIds((1, 2)), True, 0.0)


@pytest.mark.parametrize("name", ["dev", "cloud", "edge"])
def test_the_configuration_is_one_that_nats_takes(machine: Machine, name: str) -> None:
    folder = machine.write(name)
    command = [find_binary(), "-t", "-c", folder / "nats.conf"]
    env = os.environ | machine.env(name)
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=env)
    assert done.returncode == 0, done.stderr


async def test_every_user_hears_its_inbox_and_nobody_else_s(machine: Machine, join: Join) -> None:
    server, seeds = machine.start("dev"), seeds_of_dev()
    names: dict[Service, list[str]] = {
        "gateway": ["gateway"],
        "verifier": ["verifier-0", "verifier-1", "verifier-2", "verifier-3"],
        "drafter": ["drafter-0", "drafter-1"],
    }
    members = [await join(server, service, name, seeds[name]) for service in names for name in names[service]]
    for member in members:
        for other in members:
            if other is not member:
                with pytest.raises(PermissionError):
                    await member.bus.subscribe(subjects.inbox(other.service, other.id), Heard())
        for pattern in ("dsd.v1.>", ">"):
            with pytest.raises(PermissionError):
                await member.bus.subscribe(pattern, Heard())


async def test_nobody_speaks_in_another_s_name(machine: Machine, join: Join) -> None:
    server, seeds = machine.start("dev"), seeds_of_dev()
    verifier = await join(server, "verifier", "verifier-0", seeds["verifier-0"])
    drafter = await join(server, "drafter", "drafter-0", seeds["drafter-0"])
    forged = subjects.new_instance_id("drafter-1")
    await drafter.bus.publish(subjects.to("verifier", verifier.id, Draft, forged), draft(1))
    await drafter.say(verifier, Close(SESSION, 1))
    await drafter.say(verifier, draft(2))
    assert await verifier.heard.wait_for(1) == [draft(2)]
    await until(lambda: drafter.denials == 2)  # the server tells of them on its own time


async def test_old_and_new_keys_are_good_while_they_change(machine: Machine, join: Join, tmp_path: Path) -> None:
    rights = [str(K8S / f"base/nats/{kind}.conf") for kind in ("gateways", "controllers", "verifiers", "drafters")]
    old = K8S / "overlays/dev/example-keys/users.conf"
    main(["keys", *rights, "--out", str(tmp_path / "new"), "--also", str(old)])
    server = machine.start("dev", changed={"users.conf": (tmp_path / "new/users.conf").read_text()})
    await join(server, "verifier", "verifier-0", seeds_of_dev()["verifier-0"])
    await join(server, "verifier", "verifier-0", (tmp_path / "new/verifiers/verifier-0").read_text())


async def test_a_site_s_drafter_and_the_cloud_s_verifier_hear_each_other(
    machine: Machine, join: Join, documented: dict[str, Secrets]
) -> None:
    """Through the leaf link over TLS, and a route between two of the cloud's servers."""
    hubs = [machine.start("cloud", number) for number in range(3)]
    edge = machine.start("edge")
    cloud, site = documented["cloud"], documented["edge"]
    verifier = await join(hubs[0], "verifier", "verifier-0", cloud["nkeys-verifiers"]["verifier-0"])
    gateway = await join(hubs[2], "gateway", "gateway", cloud["nkeys-gateways"]["gateway"])
    drafter = await join(edge, "drafter", "site-a-drafter-0", site["nkeys-drafters"]["site-a-drafter-0"])
    await until_heard(verifier, lambda: drafter.say(verifier, draft(1)))
    await until_heard(drafter, lambda: gateway.say(drafter, Close(SESSION, 1)))
    news = Heard()
    await gateway.bus.subscribe(subjects.all_broadcasts(Heartbeat, "drafter"), news)
    async with asyncio.timeout(20):
        while not news.all:
            await drafter.bus.publish(subjects.broadcast(Heartbeat, "drafter", drafter.id), Close(SESSION, 2))
            await asyncio.sleep(0.05)
    assert verifier.heard.messages[0] == draft(1)
    assert drafter.heard.messages[0] == Close(SESSION, 1)
    assert drafter.denials == verifier.denials == gateway.denials == 0


async def test_two_sites_stay_joined_beside_each_other(machine: Machine, join: Join, tmp_path: Path) -> None:
    """The cloud ends the link of a leaf node when another of the same name joins."""
    drafters = {site: f"{site}-drafter-0" for site in (SITE, "site-b")}
    of_sites = {site: rights_file("drafter", [name], site) for site, name in drafters.items()}
    rights = {"gateways": rights_file("gateway", ["gateway"]), "sites": "\n".join(of_sites.values())}
    keys = tmp_path / "cloud-keys"
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost")
    tls = {
        "tls.crt": certificate.cert_chain_pems[0].bytes().decode(),
        "tls.key": certificate.private_key_pem.bytes().decode(),
    }
    of_cloud = with_keys(rights, keys) | tls | {"routes.conf": routes_file([])}
    hub = machine.start("cloud", HUB, of_cloud)
    gateway = await join(hub, "gateway", "gateway", (keys / "gateways/gateway").read_text())
    for number, (site, name) in enumerate(drafters.items()):
        here = tmp_path / f"{site}-keys"
        key = (keys / "sites" / site).read_text()
        changed = {"leaf-key.conf": f"nkey: {key}", "ca.crt": ca.cert_pem.bytes().decode()}
        changed |= with_keys({"drafters": rights_file("drafter", [name])}, here)
        server = machine.start("edge", number, changed, site)
        drafter = await join(server, "drafter", name, (here / "drafters" / name).read_text())
        await until_heard(drafter, partial(gateway.say, drafter, Close(SESSION, 1)))
    await asyncio.sleep(2.5)  # a link that was ended is made again after one
    assert sum("Leafnode connection created" in line for line in hub.log) == len(drafters), hub.log


async def test_clients_of_a_server_that_is_about_to_end_go_to_the_others(
    machine: Machine, join: Join, built: Built, documented: dict[str, Secrets]
) -> None:
    """The pod's preStop: lame duck, with a shorter grace."""
    shorter = {"limits.conf": LIMITS.replace('lame_duck_grace_period: "10s"', 'lame_duck_grace_period: "1s"')}
    hubs = [machine.start("cloud", number, shorter) for number in range(3)]
    cloud = documented["cloud"]
    before_it_stops = nats_container(built("cloud"), "nats")["lifecycle"]["preStop"]["exec"]["command"]
    async with front_of(hubs) as front:
        verifier = await join(front, "verifier", "verifier-0", cloud["nkeys-verifiers"]["verifier-0"])
        gateway = await join(hubs[2], "gateway", "gateway", cloud["nkeys-gateways"]["gateway"])
        await until_heard(verifier, lambda: gateway.say(verifier, Close(SESSION, 1)))
        assert before_it_stops[0] == "nats-server"
        command = [str(find_binary()), *(here(word, hubs[0].folder) for word in before_it_stops[1:])]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=20)
        assert await asyncio.to_thread(hubs[0].wait) == 0
        async with asyncio.timeout(20):
            while Close(SESSION, 2) not in verifier.heard.messages:
                await gateway.say(verifier, Close(SESSION, 2))
                await asyncio.sleep(0.05)


async def test_a_site_that_was_taken_over_is_no_more_than_its_own_drafters(
    machine: Machine, join: Join, documented: dict[str, Secrets]
) -> None:
    """Its NATS server asks nobody for a key any more; the cloud holds it to the rights of its leaf all the same."""
    hub = machine.start("cloud", 1)
    cloud = documented["cloud"]
    verifier = await join(hub, "verifier", "verifier-0", cloud["nkeys-verifiers"]["verifier-0"])
    other = await join(hub, "verifier", "verifier-1", cloud["nkeys-verifiers"]["verifier-1"])
    edge = machine.start("edge", changed={"users.conf": ""})
    liar = await join(edge, "drafter", "site-a-drafter-0")
    spied = Heard()
    await liar.bus.subscribe("dsd.v1.>", spied)
    forged = subjects.new_instance_id("site-b-drafter-0")
    gateway = await join(hub, "gateway", "gateway", cloud["nkeys-gateways"]["gateway"])

    async def lie() -> None:
        await liar.bus.publish(subjects.to("verifier", verifier.id, Draft, forged), draft(1))
        await liar.bus.publish(subjects.to("verifier", verifier.id, Close, gateway.id), Close(SESSION, 1))
        await liar.say(verifier, draft(2))  # this it may

    await until_heard(verifier, lie)
    await until_heard(other, lambda: gateway.say(other, Close(SESSION, 2)))
    await until_heard(liar, lambda: gateway.say(liar, Close(SESSION, 3)))
    assert all(message == draft(2) for message in verifier.heard.messages)
    assert Close(SESSION, 3) in spied.messages
    assert Close(SESSION, 2) not in spied.messages
