"""A cloud's NATS server and a site's, joined by the leaf link of the overlays, with users for a local system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trustme

from services.local.nats_server import Access
from services.local.nats_users import rights_file, routes_file, write_keys
from tests.k8s.machine import SITE, Machine
from tests.k8s.manifests import build
from tests.plugins.nats import NatsServer

HUB = 1  # the number of the cloud's server that the leaf joins; it is the only one


@contextmanager
def joined(folder: Path, names: Mapping[str, Sequence[str]]) -> Iterator[tuple[Access, list[NatsServer]]]:
    """Drafters are let in at the site, all others in the cloud. `names`: of the processes of each kind."""
    cloud, edge = folder / "cloud-keys", folder / "edge-keys"
    of_cloud = {f"{kind}s": rights_file(kind, list(names[kind])) for kind in ("gateway", "controller", "verifier")}
    of_cloud["sites"] = rights_file("drafter", list(names["drafter"]), SITE)
    of_edge = {"drafters": rights_file("drafter", list(names["drafter"]))}
    machine = Machine(folder, lambda name: build(name, folder / f"{name}-build"), {})
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost")
    changed = {
        "cloud": with_keys(of_cloud, cloud)
        | {
            "routes.conf": routes_file([]),
            "tls.crt": certificate.cert_chain_pems[0].bytes().decode(),
            "tls.key": certificate.private_key_pem.bytes().decode(),
        },
        "edge": with_keys(of_edge, edge)
        | {"leaf-key.conf": f"nkey: {(cloud / 'sites' / SITE).read_text()}", "ca.crt": ca.cert_pem.bytes().decode()},
    }
    try:
        hub = machine.start("cloud", HUB, changed["cloud"])
        site = machine.start("edge", 0, changed["edge"])
        settings = {
            name: {"DSD_NATS_NKEY_SEED": str(cloud / f"{kind}s" / name)}
            for kind in ("gateway", "controller", "verifier")
            for name in names[kind]
        }
        for name in names["drafter"]:
            settings[name] = {"DSD_NATS_NKEY_SEED": str(edge / "drafters" / name), "DSD_NATS_URL": site.url}
        yield Access(hub.url, settings), machine.servers
    finally:
        machine.stop()


def with_keys(rights: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The users.conf for files of rights; keys go into the folder."""
    folder.mkdir(parents=True)
    paths = [folder / f"{stem}.conf" for stem in rights]
    for path, content in zip(paths, rights.values(), strict=True):
        path.write_text(content)
    write_keys(paths, folder, also=None)
    return {"users.conf": (folder / "users.conf").read_text()}
