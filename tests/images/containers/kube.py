"""The manifests of a build as `podman kube play` takes them.

podman knows Pods and ConfigMaps, but no StatefulSet, projected volume, subPathExpr or fsGroup, and its probes need curl
in the image. All pods share this machine's network, so each gets a port of its own. The rest stays as it is: images,
commands, settings, users, rights and limits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from tests.k8s.containers import content_of
from tests.k8s.manifests import Manifest, containers_of, pod_names, pod_of, settings_of, the, workloads

READABLE = 0o444  # nobody's group owns the files, as there is no fsGroup
PROBES = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")


@dataclass(frozen=True)
class Addresses:
    """nats: port of the server; monitor: of its health; http: of each service, by pod."""

    nats: int
    monitor: int
    http: Mapping[str, int]

    def of(self, pod_name: str) -> dict[str, str]:
        settings = {"DSD_NATS_URL": f"nats://127.0.0.1:{self.nats}", "DSD_HTTP_PORT": str(self.http.get(pod_name, 0))}
        return settings if pod_name in self.http else {}


def name_of(workload: Manifest, manifests: list[Manifest]) -> str:
    """The first pod's."""
    return pod_names(workload, manifests)[0]


def documents(manifests: list[Manifest], addresses: Addresses, images: Mapping[str, str]) -> list[Manifest]:
    """ConfigMaps and one Pod for each workload; `images`: what stands for each image here."""
    made: list[Manifest] = []
    for workload in workloads(manifests):
        name = name_of(workload, manifests)
        pod = copy.deepcopy(pod_of(workload)) | {"hostNetwork": True, "restartPolicy": "Never"}
        pod.pop("topologySpreadConstraints", None)
        pod["volumes"] = [volume_of(volume, name, manifests, made) for volume in pod["volumes"]]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            adapt(container, name, manifests, addresses, images)
        annotations = {"io.podman.annotations.init.container.type": "always"}  # kept when it has ended
        metadata = {"name": name, "annotations": annotations}
        made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    return made


def volume_of(volume: Manifest, pod_name: str, manifests: list[Manifest], made: list[Manifest]) -> Manifest:
    """Files come from one ConfigMap, which is added to `made`; all other volumes are empty folders."""
    name = f"{pod_name}-{volume['name']}"
    files: dict[str, str] = {}
    for source in volume.get("projected", {}).get("sources", [volume]):
        if "configMap" in source:
            files |= the(manifests, "ConfigMap", source["configMap"]["name"])["data"]
        elif "secret" in source:
            secret = source["secret"]
            files |= content_of(secret.get("secretName") or secret["name"], manifests, {})
    if not files:
        return {"name": name, "emptyDir": {}}
    made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files})
    return {"name": name, "configMap": {"name": name, "defaultMode": READABLE}}


def adapt(
    container: Manifest, pod_name: str, manifests: list[Manifest], addresses: Addresses, images: Mapping[str, str]
) -> None:
    for probe in PROBES:
        container.pop(probe, None)
    for mount in container["volumeMounts"]:
        mount["name"] = f"{pod_name}-{mount['name']}"
        if mount.pop("subPathExpr", None):
            mount["subPath"] = pod_name  # DSD_NAME
    container.pop("ports", None)
    container |= {"image": images[container["image"]], "imagePullPolicy": "Never"}
    settings = settings_of(container, manifests) | addresses.of(pod_name)
    container.pop("envFrom", None)  # with podman it goes before env
    container["env"] = [variable(name, value, pod_name) for name, value in settings.items()]
    if container.get("command") == ["nats-server"]:
        words = [word.replace("8222", str(addresses.monitor)) for word in container["args"]]
        container["args"] = [*words, "--addr=127.0.0.1", f"--port={addresses.nats}"]


def variable(name: str, value: str | Manifest, pod_name: str) -> Manifest:
    """podman does not put other variables into a value, as Kubernetes does."""
    if isinstance(value, str):
        return {"name": name, "value": value.replace("$(POD_NAME)", pod_name)}
    return {"name": name, "valueFrom": value}


def images_of(manifests: list[Manifest]) -> set[str]:
    return {container["image"] for workload in workloads(manifests) for container in containers_of(workload)}


def requested_memory(manifests: list[Manifest]) -> dict[str, int]:
    """Bytes, by podman's name of the container."""
    return {
        f"{name_of(workload, manifests)}-{container['name']}": in_bytes(container["resources"]["requests"]["memory"])
        for workload in workloads(manifests)
        for container in containers_of(workload)
    }


def in_bytes(quantity: str) -> int:
    units = {"Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
