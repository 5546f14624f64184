"""Real nats-servers with the component nats-tls take a renewed certificate while they run."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Close
from tests.k8s.components.test_components import joined, secrets_of, started, write_certificate
from tests.k8s.machine import Machine
from tests.k8s.manifests import Secrets
from tests.plugins.nats import NatsServer
from tests.shared.bus.bus_helpers import Heard

MESSAGE = Close("0123456789abcdef" * 2, 1)


async def reaches(gateway: Bus, gateway_id: str, verifier_id: str, heard: Heard) -> None:
    """Returns when one more message has come through."""
    before = len(heard.all)
    async with asyncio.timeout(20):
        while len(heard.all) == before:
            await gateway.publish(subjects.to("verifier", verifier_id, Close, gateway_id), MESSAGE)
            await asyncio.sleep(0.05)


async def shown(port: int, folder: Path, *, speaks_first: bool) -> bytes:
    """The certificate that a server shows at a port. At that for clients it speaks first, in clear text."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "own.crt", folder / "own.key")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if speaks_first:
        await reader.readline()
    await asyncio.wait_for(writer.start_tls(context), 20)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(found)


async def shows(server: NatsServer, certificate: str) -> bool:
    """Whether both ports show it: that for clients, and that for routes."""
    (routes,) = [line for line in server.log if "Listening for route connections on" in line]
    ports = {int(server.url.rpartition(":")[2]): True, int(routes.rpartition(":")[2]): False}
    found = {await shown(port, server.folder, speaks_first=first) for port, first in ports.items()}
    return found == {ssl.PEM_cert_to_DER_cert(certificate)}


def num_lost_routes(server: NatsServer) -> int:
    return sum("Router connection closed" in line for line in server.log)


@pytest.mark.timeout(120)
async def test_clients_and_routes_stay_and_newcomers_see_the_renewed_certificate(
    machine: Machine, documented: dict[str, Secrets], tmp_path: Path
) -> None:
    authority, cloud = trustme.CA(), documented["cloud"]
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    servers = [started(machine, "guarded cloud", number, authority, secrets_of(cloud)) for number in (0, 2)]
    seeds = {"verifier-0": cloud["nkeys-verifiers"]["verifier-0"], "gateway": cloud["nkeys-gateways"]["gateway"]}
    verifier, verifier_id = await joined(servers[0], "verifier", "verifier-0", seeds["verifier-0"], tmp_path)
    gateway, gateway_id = await joined(servers[1], "gateway", "gateway", seeds["gateway"], tmp_path)
    heard = Heard()
    await verifier.subscribe(subjects.inbox("verifier", verifier_id), heard)
    await reaches(gateway, gateway_id, verifier_id, heard)
    lost = [num_lost_routes(server) for server in servers]

    for server in servers:  # one after the other, as Secrets reach pods
        write_certificate(server.folder, authority)
        server.reload((server.folder / "nats.conf").read_text())
        await reaches(gateway, gateway_id, verifier_id, heard)
    assert [num_lost_routes(server) for server in servers] == lost
    for server in servers:
        assert await shows(server, (server.folder / "own.crt").read_text())

    servers[1].stop(kill=True)
    servers[1].start()
    await reaches(gateway, gateway_id, verifier_id, heard)  # over a new connection and a new route
    await verifier.close()
    await gateway.close()
