"""The dev overlay for podman: kustomize build k8s/overlays/dev | python -m deploy.podman > dsd.yaml.

`podman kube play` knows Pods and ConfigMaps, but no StatefulSet, projected volume, subPathExpr or fsGroup, and its
probes need curl in the image. All pods share the machine's network, so each service has a port of its own
(docs/deploy.md).

Invariant: the rest stays as it is: commands, settings, users, rights and limits.
"""

from __future__ import annotations

import argparse
import base64
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

LOOPBACK = "127.0.0.1"
FIRST_PORT, NATS_PORT = 8080, 4222  # the gateway's; the other services' follow by name
READABLE = 0o444  # nobody's group owns the files, as there is no fsGroup
PROBES = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """What kustomize has printed. listen: the address on which all containers listen."""

    manifests: Sequence[Manifest]
    listen: str
    nats_image: str

    @property
    def workloads(self) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] in ("Deployment", "StatefulSet")]

    @property
    def ports(self) -> dict[str, int]:
        """Of each service, by pod."""
        pods = [
            pod_name(each) for each in self.workloads if _is_ours(each["spec"]["template"]["spec"]["containers"][0])
        ]
        ordered = sorted(pods, key=lambda name: (name != "gateway", name))
        return {name: FIRST_PORT + index for index, name in enumerate(ordered)}

    def the(self, kind: str, name: str) -> Manifest:
        """Raises ValueError."""
        for each in self.manifests:
            if (each["kind"], each["metadata"]["name"]) == (kind, name):
                return each
        raise ValueError(f"there is no {kind} {name}: only the overlay dev brings all that it needs")


def documents(build: Build) -> list[Manifest]:
    """ConfigMaps, and the first pod of each workload. Raises ValueError."""
    if not build.workloads:
        raise ValueError("no manifests on standard input: kustomize build k8s/overlays/dev | python -m deploy.podman")
    made: list[Manifest] = []
    for workload in build.workloads:
        name = pod_name(workload)
        pod = copy.deepcopy(workload["spec"]["template"]["spec"]) | {"hostNetwork": True, "restartPolicy": "Never"}
        pod.pop("topologySpreadConstraints", None)
        pod["volumes"] = [_volume(volume, name, build, made) for volume in pod["volumes"]]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            _adapt(container, name, build)
        annotations = {"io.podman.annotations.init.container.type": "always"}  # kept when it has ended
        made.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": pod}
        )
    return made


def pod_name(workload: Manifest) -> str:
    """Of the first pod; NATS users have these names."""
    name = str(workload["metadata"]["name"])
    return name if workload["kind"] == "Deployment" else f"{name}-0"


def _is_ours(container: Manifest) -> bool:
    return str(container["image"]).startswith("dsd-")


def _volume(volume: Manifest, pod: str, build: Build, made: list[Manifest]) -> Manifest:
    """Files come from one ConfigMap, which is added to `made`; all other volumes are empty folders."""
    name = f"{pod}-{volume['name']}"
    files: dict[str, str] = {}
    for source in volume.get("projected", {}).get("sources", [volume]):
        if "configMap" in source:
            files |= build.the("ConfigMap", source["configMap"]["name"])["data"]
        elif "secret" in source:
            secret = source["secret"]
            data = build.the("Secret", secret.get("secretName") or secret["name"])["data"]
            files |= {key: base64.b64decode(value).decode() for key, value in data.items()}
    if not files:
        return {"name": name, "emptyDir": {}}
    made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files})
    return {"name": name, "configMap": {"name": name, "defaultMode": READABLE}}


def _adapt(container: Manifest, pod: str, build: Build) -> None:
    for field in (*PROBES, "ports"):
        container.pop(field, None)
    for mount in container["volumeMounts"]:
        mount["name"] = f"{pod}-{mount['name']}"
        if mount.pop("subPathExpr", None):
            mount["subPath"] = pod  # DSD_NAME
    if container.get("command") == ["nats-server"]:
        container["args"] += [f"--addr={build.listen}", f"--port={NATS_PORT}"]
    if _is_ours(container):
        container |= {"image": f"localhost/{container['image']}", "imagePullPolicy": "Never"}
    else:
        container["image"] = build.nats_image or f"docker.io/library/{container['image']}"
    settings = _settings(container, build)
    if pod in build.ports:
        settings |= {
            "DSD_NATS_URL": f"nats://{build.listen}:{NATS_PORT}",
            "DSD_HTTP_HOST": build.listen,
            "DSD_HTTP_PORT": str(build.ports[pod]),
        }
    container.pop("envFrom", None)  # with podman it goes before env
    container["env"] = [_variable(name, value, pod) for name, value in settings.items()]


def _settings(container: Manifest, build: Build) -> dict[str, Any]:
    """A container's variables: their values, or where they come from."""
    found: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        found |= build.the("ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def _variable(name: str, value: str | Manifest, pod: str) -> Manifest:
    """podman does not put other variables into a value, as Kubernetes does."""
    if isinstance(value, str):
        return {"name": name, "value": value.replace("$(POD_NAME)", pod)}
    return {"name": name, "valueFrom": value}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.podman", description="Turns the manifests of the dev overlay into Pods for podman."
    )
    parser.add_argument("--listen", default=LOOPBACK, metavar="ADDRESS", help=f"where all listen; default {LOOPBACK}")
    parser.add_argument("--nats-image", default="", metavar="IMAGE", help="another one than that of the manifests")
    asked = parser.parse_args(argv)
    manifests = [each for each in yaml.safe_load_all(sys.stdin) if each]
    try:
        made = documents(Build(manifests, asked.listen, asked.nats_image))
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    yaml.safe_dump_all(made, sys.stdout, sort_keys=False)


if __name__ == "__main__":
    main(sys.argv[1:])
