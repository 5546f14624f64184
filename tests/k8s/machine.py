"""Real nats-servers with the configuration of the builds, all on this machine."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from services.local.nats_server import find_binary, free_port
from tests.k8s.commands import CLOUD_NAME
from tests.k8s.manifests import Manifest, Secrets, of_kind, pod_of, settings_of, the
from tests.plugins.nats import NatsServer

Built = Callable[[str], list[Manifest]]
SITE = "site-a"  # of the overlay for an edge


def files_of(manifests: list[Manifest], secrets: Secrets) -> dict[str, str]:
    """What a NATS pod sees at all its mounts, by file name."""
    known = {each["metadata"]["name"]: each["data"] for each in of_kind(manifests, "ConfigMap")} | secrets
    for secret in of_kind(manifests, "Secret"):
        decoded = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        known[secret["metadata"]["name"]] = decoded
    found: dict[str, str] = {}
    for volume in pod_of(the(manifests, "StatefulSet", "nats"))["volumes"]:
        for source in volume.get("projected", {}).get("sources", [volume]):
            reference = source.get("configMap") or source.get("secret") or {}
            found |= known.get(reference.get("name", reference.get("secretName")), {})
    return found


def nats_container(manifests: list[Manifest], name: str) -> Manifest:
    """A container of the pods of NATS."""
    (found,) = [each for each in pod_of(the(manifests, "StatefulSet", "nats"))["containers"] if each["name"] == name]
    return dict(found)


def here(text: str, folder: Path) -> str:
    """A text that names a pod's files, with the folder of this machine in which all of them are."""
    for place in ("/etc/nats-tls", "/etc/nats", "/run/nats"):
        text = text.replace(place, str(folder))
    return text


class Machine:
    """Servers with the builds' configuration, on loopback: only addresses and folders are replaced."""

    def __init__(self, folder: Path, built: Built, documented: dict[str, Secrets]) -> None:
        self._folder = folder
        self._built = built
        self._documented = documented
        self._route_ports = [free_port() for _ in range(3)]
        self._leaf_port = free_port()
        self.servers: list[NatsServer] = []
        self._reloaders: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, number: int = 0, changed: dict[str, str] | None = None) -> Path:
        """The files of one server; its folder."""
        folder = self._folder / f"{name}-{number}"
        folder.mkdir()
        for file, content in (files_of(self._built(name), self._documented.get(name, {})) | (changed or {})).items():
            (folder / file).write_text(self._at_home(content, folder, number))
        return folder

    def _at_home(self, content: str, folder: Path, number: int) -> str:
        replaced = {f"nats-{i}.nats-pods:6222": f"127.0.0.1:{port}" for i, port in enumerate(self._route_ports)}
        replaced |= {"port: 6222": f'listen: "127.0.0.1:{self._route_ports[number]}"'}
        replaced |= {"port: 7422": f'listen: "127.0.0.1:{self._leaf_port if number == 1 else -1}"'}
        replaced |= {f"{CLOUD_NAME}:7422": f"localhost:{self._leaf_port}"}
        for text, other in replaced.items():
            content = content.replace(text, other)
        return here(content, folder)

    def start(self, name: str, number: int = 0, changed: dict[str, str] | None = None, site: str = SITE) -> NatsServer:
        """`site`: what an operator has put in place of the manifests' own."""
        folder = self.write(name, number, changed)
        env = self.env(name, number, site)
        self.servers.append(NatsServer(folder, (folder / "nats.conf").read_text(), env))
        self.servers[-1].start()
        return self.servers[-1]

    def env(self, name: str, number: int = 0, site: str = SITE) -> dict[str, str]:
        """The variables of the server's container."""
        pod_name = f"nats-{number if name == 'cloud' else 0}"
        given = settings_of(nats_container(self._built(name), "nats"), [])["SERVER_NAME"]
        return {"SERVER_NAME": given.replace("$(POD_NAME)", pod_name).replace(SITE, site)}

    def watch(self, name: str, server: NatsServer) -> None:
        """Starts what the pod's other container runs, which looks more often here."""
        (server.folder / "nats.pid").write_text(str(server.pid))
        container = nats_container(self._built(name), "reloader")
        script = here("\n".join(container["args"]), server.folder).replace("sleep 5", "sleep 0.1")
        env = os.environ | {"PATH": f"{find_binary().parent}{os.pathsep}{os.environ['PATH']}"}
        self._reloaders.append(subprocess.Popen([*container["command"], script], env=env))

    def stop(self) -> None:
        for reloader in self._reloaders:
            reloader.kill()
            reloader.wait()
        for server in self.servers:
            server.stop(kill=True)
