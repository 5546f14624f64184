"""The component with which users' own drafters join over WebSockets: they get in there, and nobody else does."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.aio.client import Client

from services.local.nats_server import free_port
from services.local.nats_users import write_keys
from shared.runtime.nats_keys import new_seed, public_key
from tests.k8s.commands import CLOUD_NAME
from tests.k8s.machine import Built, Machine
from tests.k8s.manifests import K8S, Secrets, of_kind, the

pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")


def test_it_changes_the_cloud_s_configuration_by_one_line() -> None:
    own, cloud = ((K8S / folder / "nats.conf").read_text() for folder in ("components/websocket", "overlays/cloud"))
    assert own.replace('include "websocket.conf"\n', "") == cloud


def test_drafters_come_by_a_name_of_their_own_through_the_ingress_of_clients(built: Built) -> None:
    """The name of sites leads to another load balancer."""
    manifests = built("own drafters")
    ingress = the(manifests, "Ingress", "nats-web")["spec"]
    (rule,), (tls,) = ingress["rules"], ingress["tls"]
    (settings,) = [each["data"] for each in of_kind(manifests, "ConfigMap") if "DSD_DRAFTER_NATS_URL" in each["data"]]
    assert settings["DSD_DRAFTER_NATS_URL"] == f"wss://{rule['host']}"
    assert tls["hosts"] == [rule["host"]] != [CLOUD_NAME]
    of_clients = the(built("guarded cloud"), "Ingress", "gateway")["spec"]
    assert ingress["ingressClassName"] == of_clients["ingressClassName"]
    assert rule["host"] != of_clients["rules"][0]["host"]


async def test_a_user_s_drafter_gets_in_over_the_websocket_and_no_other_user_does(
    tmp_path: Path, machine: Machine, documented: dict[str, Secrets]
) -> None:
    seed, port, keys = new_seed(), free_port(), tmp_path / "keys"
    keys.mkdir()
    (keys / "keys.toml").write_text(f'[alice.own_drafters]\nkey-alice = "{public_key(seed)}"\n')
    write_keys([K8S / "base/nats/gateways.conf"], keys, also=None, api_keys=keys / "keys.toml")
    web = (K8S / "components/websocket/websocket.conf").read_text().replace("port: 8080", f"port: {port}")
    secrets = documented["cloud"]["nats-auth"] | documented["cloud"]["nats-leaf-tls"]
    changed = {**secrets, "users.conf": (keys / "users.conf").read_text(), "websocket.conf": web}
    server = machine.start("own drafters", changed=changed)
    seeds = {"drafter": seed, "gateway": (keys / "gateways/gateway").read_text()}
    for url, who, gets_in in (
        (f"ws://127.0.0.1:{port}", "drafter", True),
        (server.url, "drafter", True),
        (server.url, "gateway", True),
        (f"ws://127.0.0.1:{port}", "gateway", False),
    ):
        client = Client()
        options = {"nkeys_seed_str": seeds[who], "allow_reconnect": False, "connect_timeout": 5}
        if gets_in:
            await client.connect(url, **options)
            await client.flush()
        else:
            with pytest.raises(Exception, match=r"(?i)authorization"):
                await client.connect(url, **options)
        await client.close()
