"""TLS to NATS: who asked for it gets it from the right server, or says nothing at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog
import trustme

from shared.runtime.config import ServiceSettings
from tests.plugins.nats import NatsServer, StartNatsServer
from tests.shared.bus.test_nats_bus import NatsMember

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    found = trustme.CA()
    found.cert_pem.write_to_path(tmp_path / "ca.crt")
    return found


def secured(start: StartNatsServer, folder: Path, ca: trustme.CA, name: str) -> NatsServer:
    """A server with a certificate for a name."""
    certificate = ca.issue_cert(name)
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    return start(f'tls {{cert_file: "{folder}/tls.crt", key_file: "{folder}/tls.key"}}')


def member_of(server: NatsServer, folder: Path, scheme: str = "tls") -> NatsMember:
    url = server.url.replace("nats:", f"{scheme}:")
    return NatsMember(ServiceSettings(nats_url=url, nats_ca=str(folder / "ca.crt")))


async def refusals(member: NatsMember) -> list[str]:
    """Why a member does not connect."""
    with structlog.testing.capture_logs() as lines:
        connecting = asyncio.create_task(member.connect())
        await member.until_count(1, "errors", kind="connection")
        assert not connecting.done()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
    return [line["error"] for line in lines if "error" in line]


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_that_speaks_in_clear_is_told_nothing(
    nats_server: NatsServer, tmp_path: Path, ca: trustme.CA, scheme: str
) -> None:
    found = await refusals(member_of(nats_server, tmp_path, scheme))
    assert "offers no TLS" in found[0]


async def test_a_server_with_the_ca_s_certificate_for_its_address_is_trusted(
    start_nats_server: StartNatsServer, tmp_path: Path, ca: trustme.CA
) -> None:
    member = member_of(secured(start_nats_server, tmp_path, ca, "127.0.0.1"), tmp_path)
    await asyncio.wait_for(member.connect(), 20)
    await member.bus.close()


@pytest.mark.parametrize("wrong", ["ca", "name"])
async def test_a_server_with_another_ca_s_certificate_or_for_another_name_is_not(
    start_nats_server: StartNatsServer, tmp_path: Path, ca: trustme.CA, wrong: str
) -> None:
    issuer, name = (trustme.CA(), "127.0.0.1") if wrong == "ca" else (ca, "other.example")
    found = await refusals(member_of(secured(start_nats_server, tmp_path, issuer, name), tmp_path))
    assert "certificate verify failed" in found[0].lower()
