"""The component with which users' own drafters join over WebSockets: they get in there, and nobody else does."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.aio.client import Client

from services.local.nats_server import free_port
from services.local.nats_users import owned_file, rights_file
from shared.runtime.nats_keys import new_seed, public_key
from tests.k8s.joined import with_keys
from tests.k8s.machine import Machine
from tests.k8s.manifests import K8S, Secrets

pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")


def test_it_changes_the_cloud_s_configuration_by_one_line() -> None:
    own, cloud = ((K8S / folder / "nats.conf").read_text() for folder in ("components/websocket", "overlays/cloud"))
    assert own.replace('include "websocket.conf"\n', "") == cloud


async def test_a_user_s_drafter_gets_in_over_the_websocket_and_no_other_user_does(
    tmp_path: Path, machine: Machine, documented: dict[str, Secrets]
) -> None:
    seed, port, rights = new_seed(), free_port(), {"gateways": rights_file("gateway", ["gateway"])}
    rights["owned-drafters"] = owned_file({"key-alice": public_key(seed)}, "keys.toml")
    web = (K8S / "components/websocket/websocket.conf").read_text().replace("port: 8080", f"port: {port}")
    secrets = documented["cloud"]["nats-auth"] | documented["cloud"]["nats-leaf-tls"]
    changed = {**secrets, **with_keys(rights, tmp_path / "keys"), "websocket.conf": web}
    server = machine.start("own drafters", changed=changed)
    seeds = {"drafter": seed, "gateway": (tmp_path / "keys/gateways/gateway").read_text()}
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
