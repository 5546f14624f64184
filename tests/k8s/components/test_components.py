"""Components do what they promise: streams outlive proxies, NATS speaks TLS, models come from where they are."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import nats
import nats.errors
import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from prometheus_client import CollectorRegistry

from services.gateway.settings import GatewaySettings
from shared.bus import nats_bus
from shared.bus.bus import Bus
from shared.protocol import subjects
from shared.protocol.messages import Close, Service
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.k8s.commands import run_commands
from tests.k8s.machine import Built, Machine
from tests.k8s.manifests import (
    K8S,
    ROOT,
    Secrets,
    containers_of,
    labels_of,
    of_kind,
    pod_of,
    service_of,
    settings_of,
    the,
    workloads,
)
from tests.plugins.nats import NatsServer
from tests.shared.bus.bus_helpers import Heard

ANSWER_S = GatewaySettings.model_fields["request_timeout_s"].default
FOLDERS = {"gateway": "DSD_TARGET", "verifier": "DSD_TARGET", "drafter": "DSD_DRAFT"}


def seconds(text: str) -> int:
    return int(re.fullmatch(r"\D*(\d+)s?", text)[1])  # type: ignore[index]


def test_proxies_wait_longer_than_an_answer_may_take(built: Built) -> None:
    manifests = built("guarded cloud")
    annotations = the(manifests, "Ingress", "gateway")["metadata"]["annotations"]
    waits = [seconds(value) for key, value in annotations.items() if "timeout" in value or "timeout" in key]
    route = the(manifests, "HTTPRoute", "gateway")
    waits += [seconds(value) for rule in route["spec"]["rules"] for value in rule["timeouts"].values()]
    assert len(waits) == 6
    assert min(waits) > ANSWER_S


def test_proxies_lead_to_the_api_of_the_gateway_and_not_to_its_metrics(built: Built) -> None:
    manifests = built("guarded cloud")
    service = the(manifests, "Service", "gateway")
    (port,) = service["spec"]["ports"]
    (rule,) = the(manifests, "Ingress", "gateway")["spec"]["rules"]
    assert rule["http"]["paths"] == [
        {
            "path": "/v1",
            "pathType": "Prefix",
            "backend": {"service": {"name": "gateway", "port": {"name": port["name"]}}},
        }
    ]
    (rule,) = the(manifests, "HTTPRoute", "gateway")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "gateway", "port": port["port"]}]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]


@pytest.mark.parametrize("name", ["guarded cloud", "guarded edge"])
def test_every_service_asks_nats_for_a_certificate_of_the_ca_alone(built: Built, name: str) -> None:
    for workload in workloads(built(name)):
        if not service_of(workload):
            continue
        (container,) = pod_of(workload)["containers"]
        settings = settings_of(container, built(name))
        assert settings["DSD_NATS_URL"].startswith("tls://nats:")
        (mount,) = [each for each in container["volumeMounts"] if settings["DSD_NATS_CA"].startswith(each["mountPath"])]
        (volume,) = [each for each in pod_of(workload)["volumes"] if each["name"] == mount["name"]]
        assert volume["secret"] == {"secretName": "nats-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}


def test_routes_with_tls_are_those_without_it_and_tls() -> None:
    """The component replaces a file of the base, which may change."""
    base, changed = ((K8S / folder / "cluster.conf").read_text() for folder in ("base/nats", "components/nats-tls"))
    without = re.sub(r"  tls \{\n(    .+\n)+  \}\n", "", changed)
    assert without.splitlines()[1:] == base.splitlines()[1:]


def started(machine: Machine, name: str, number: int, authority: trustme.CA, secrets: dict[str, str]) -> NatsServer:
    """A server of a build with the component, with a certificate for this machine."""
    folder = machine.write(name, number, secrets)
    write_certificate(folder, authority)
    (folder / "of-the-overlay.conf").write_text((folder / "nats.conf").read_text())
    configuration = (folder / "with-tls.conf").read_text().replace('"nats.conf"', '"of-the-overlay.conf"')
    machine.servers.append(NatsServer(folder, configuration, {"SERVER_NAME": f"nats-{number}"}))
    machine.servers[-1].start()
    return machine.servers[-1]


def write_certificate(folder: Path, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    (folder / "own.crt").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(folder / "own.key"))
    authority.cert_pem.write_to_path(str(folder / "own-ca.crt"))


def secrets_of(cloud: Secrets) -> dict[str, str]:
    return cloud["nats-auth"] | cloud["nats-leaf-tls"]


async def joined(server: NatsServer, service: Service, name: str, seed: str, folder: Path) -> tuple[Bus, str]:
    """A member's bus, over TLS with the CA's certificate, and its id."""
    file = folder / f"{name}.seed"
    file.write_text(seed)
    settings = ServiceSettings(
        name=name,
        nats_url=server.url.replace("nats://127.0.0.1", "tls://localhost"),
        nats_ca=str(folder / "ca.crt"),
        nats_nkey_seed=str(file),
    )
    id_ = subjects.new_instance_id(name)
    return await asyncio.wait_for(nats_bus.connect(settings, id_, BusMetrics(CollectorRegistry())), 20), id_


@pytest.mark.timeout(60)
async def test_services_hear_each_other_over_tls_through_two_servers(
    machine: Machine, documented: dict[str, Secrets], tmp_path: Path
) -> None:
    authority, cloud = trustme.CA(), documented["cloud"]
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    servers = [started(machine, "guarded cloud", number, authority, secrets_of(cloud)) for number in (0, 2)]
    verifier, verifier_id = await joined(
        servers[0], "verifier", "verifier-0", cloud["nkeys-verifiers"]["verifier-0"], tmp_path
    )
    gateway, gateway_id = await joined(servers[1], "gateway", "gateway", cloud["nkeys-gateways"]["gateway"], tmp_path)
    heard = Heard()
    await verifier.subscribe(subjects.inbox("verifier", verifier_id), heard)
    message = Close("0123456789abcdef" * 2, 1)
    async with asyncio.timeout(20):
        while not heard.all:
            await gateway.publish(subjects.to("verifier", verifier_id, Close, gateway_id), message)
            await asyncio.sleep(0.05)
    await verifier.close()
    await gateway.close()
    assert heard.messages[0] == message


@pytest.mark.timeout(60)
async def test_nats_refuses_who_speaks_without_tls(machine: Machine, documented: dict[str, Secrets]) -> None:
    server = started(machine, "guarded edge", 0, trustme.CA(), documented["edge"]["nats-auth"])
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(server.url, allow_reconnect=False, connect_timeout=2, error_cb=ignored)


async def ignored(error: Exception) -> None:
    """nats-py would log what the test expects."""


def test_the_certificates_that_cert_manager_makes_have_the_names_that_are_asked_for(built: Built) -> None:
    manifests = built("guarded cloud")
    names = {each["spec"]["secretName"]: each["spec"].get("dnsNames", []) for each in of_kind(manifests, "Certificate")}
    assert "nats" in names["nats-tls"]  # of the Service that DSD_NATS_URL names
    service = the(manifests, "StatefulSet", "nats")["spec"]["serviceName"]
    assert f"*.{service}" in names["nats-tls"]  # of the routes: nats-0.nats-pods
    assert names["nats-leaf-tls"] == ["nats.dsd.example"]
    assert "client auth" in the(manifests, "Certificate", "nats-tls")["spec"]["usages"]


def test_the_document_s_commands_make_the_certificate_that_cert_manager_would_make(
    built: Built, documented: dict[str, Secrets]
) -> None:
    secret = documented["nats-tls"]["nats-tls"]
    certificate, authority = (x509.load_pem_x509_certificate(secret[key].encode()) for key in ("tls.crt", "ca.crt"))
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    spec = the(built("guarded cloud"), "Certificate", "nats-tls")["spec"]
    assert names.get_values_for_type(x509.DNSName) == spec["dnsNames"]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_they_renew_it_with_the_same_ca(tmp_path: Path) -> None:
    first, again = (run_commands(tmp_path, ("nats-tls",))["nats-tls"]["nats-tls"] for _ in range(2))
    assert first["ca.crt"] == again["ca.crt"]
    assert first["tls.crt"] != again["tls.crt"]


def test_external_secrets_make_the_secrets_that_the_document_s_commands_make(
    built: Built, documented: dict[str, Secrets]
) -> None:
    """Except the certificate, which cert-manager makes."""
    made = {each["spec"]["target"]["name"] for each in of_kind(built("guarded cloud"), "ExternalSecret")}
    assert made == set(documented["cloud"]) - {"nats-leaf-tls"}


@pytest.mark.parametrize("name", ["guarded cloud", "guarded edge"])
def test_a_server_finds_its_certificate_beside_its_configuration(built: Built, name: str) -> None:
    """There the pod's other container sees when it is renewed."""
    manifests = built(name), built(name.removeprefix("guarded "))
    volumes = [pod_of(the(each, "StatefulSet", "nats"))["volumes"] for each in manifests]
    having, lacking = (next(each for each in found if each["name"] == "config")["projected"] for found in volumes)
    *others, added = having["sources"]
    assert [set(each) for each in others] == [set(each) for each in lacking["sources"]]
    assert {item["key"] for item in added["secret"]["items"]} == {"ca.crt", "tls.crt", "tls.key"}
    told = "".join(path.read_text() for path in (K8S / "components/nats-tls").glob("*.conf"))
    assert set(re.findall(r'"/etc/nats/(.+)"', told)) == {item["path"] for item in added["secret"]["items"]}


@pytest.mark.parametrize(
    ("name", "roles"), [("target from the hub", 2), ("draft from the hub", 1), ("draft from an image", 1)]
)
def test_models_come_to_the_folder_that_the_service_reads(built: Built, name: str, roles: int) -> None:
    making = [each for each in workloads(built(name)) if "initContainers" in pod_of(each)]
    assert len(making) == roles
    for workload in making:
        first, running = containers_of(workload)
        settings = settings_of(running, built(name))
        variable = FOLDERS[labels_of(workload)["app.kubernetes.io/name"]]
        if name.endswith("the hub"):
            given = settings_of(first, built(name))
            assert given[variable] == settings[variable]  # $(DSD_TARGET) in the command
            assert f"$({variable})" in first["command"]
            assert set(re.findall(r"\$\((\w+)\)", " ".join(first["command"]))) <= set(given)
        mount = next(each for each in first["volumeMounts"] if each["name"] == "models")
        assert settings[variable].startswith(mount["mountPath"])
        assert not mount.get("readOnly")
        assert mount | {"readOnly": True} in running["volumeMounts"]


@pytest.mark.parametrize(("name", "roles"), [("target from the hub", 2), ("draft from the hub", 1)])
def test_what_downloads_has_the_program_and_a_place_to_write(built: Built, name: str, roles: int) -> None:
    """Its root file system is read-only."""
    found = [
        (pod_of(each), first) for each in workloads(built(name)) for first in pod_of(each).get("initContainers", [])
    ]
    downloading = [(pod, first) for pod, first in found if first.get("command", [""])[0] == "hf"]
    assert len(downloading) == roles
    assert "\nhuggingface-hub==" in (ROOT / "images/locks/models.txt").read_text()
    for pod, first in downloading:
        assert re.fullmatch(r"registry\.example/dsd-models:[\d.]+", first["image"])
        writable = {each["mountPath"]: each["name"] for each in first["volumeMounts"] if not each.get("readOnly")}
        volume = writable[settings_of(first, built(name))["HF_HOME"]]
        assert "emptyDir" in next(each for each in pod["volumes"] if each["name"] == volume)


@pytest.mark.parametrize(("name", "policy"), [("target from the hub", "hub"), ("draft from the hub", "hub-drafters")])
def test_pods_that_download_may_connect_to_no_address_inside_the_cluster(built: Built, name: str, policy: str) -> None:
    (rule,) = the(built(name), "NetworkPolicy", policy)["spec"]["egress"]
    (peer,) = rule["to"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} == set(peer["ipBlock"]["except"])


def test_what_answers_need_outranks_what_makes_them_faster(built: Built) -> None:
    for name in ("guarded cloud", "guarded edge"):
        value = {each["metadata"]["name"]: each["value"] for each in of_kind(built(name), "PriorityClass")}
        ranks = {
            labels_of(each)["app.kubernetes.io/name"]: value[pod_of(each)["priorityClassName"]]
            for each in workloads(built(name))
        }
        needed = {rank for role, rank in ranks.items() if role in ("nats", "gateway", "verifier")}
        helping = {rank for role, rank in ranks.items() if role in ("controller", "drafter")}
        assert min(needed) > max(helping)
