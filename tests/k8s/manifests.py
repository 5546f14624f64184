"""What `kustomize build` makes of k8s/, and how tests look into it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
DOCUMENT = ROOT / "docs" / "deploy.md"
LARGE_MODELS = ROOT / "docs" / "large-models.md"
BUILDS = (
    "base",
    "dev",
    "cloud",
    "edge",
    "monitored edge",
    "many GPUs",
    "many nodes",
    "own pair",
    "own drafters",
    "guarded cloud",
    "guarded edge",
    "target from the hub",
    "draft from the hub",
    "draft from an image",
)
OVERLAYS = BUILDS[1:]

GROUPS = "leaderworkerset.sigs.k8s.io"
Manifest = dict[str, Any]
Secrets = dict[str, dict[str, str]]  # content by key, by Secret
SERVICES = {  # the name that labels a pod: the package of the service in it
    "gateway": "gateway",
    "controller": "window_controller",
    "verifier": "cloud_verifier",
    "drafter": "edge_drafter",
}


def _on_top(overlay: str, components: str) -> str:
    """The kustomization of an overlay with components."""
    folders = [f"../k8s/components/{name}" for name in components.split()]
    return f"resources: [../k8s/overlays/{overlay}]\ncomponents: [{', '.join(folders)}]\n"


ON_TOP = {  # builds that add a component to an overlay
    "monitored edge": _on_top("edge", "service-monitor keda-drafters"),
    "own drafters": _on_top("cloud", "websocket"),
    "many GPUs": _on_top("cloud", "many-gpus"),
    "guarded cloud": _on_top("cloud", "ingress http-route nats-tls cert-manager external-secrets gpu-nodes priorities"),
    "guarded edge": _on_top("edge", "nats-tls priorities models-from-claim"),
    "target from the hub": _on_top("cloud", "models-from-hub"),
    "draft from the hub": _on_top("edge", "models-from-hub-edge"),
    "draft from an image": _on_top("edge", "models-from-image"),
}
SHOWN = {"many nodes": LARGE_MODELS, "own pair": DOCUMENT}  # builds that a document shows


def build(name: str, scratch: Path) -> list[Manifest]:
    """The manifests of a build; `scratch` is a folder for those that stand on an overlay."""
    if name in ("base", "dev", "cloud", "edge"):
        return kustomized(K8S / ("base" if name == "base" else f"overlays/{name}"))
    (scratch / "k8s").symlink_to(K8S)
    folder = scratch / "on-top"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(ON_TOP.get(name) or kustomization_of(SHOWN[name]))
    return kustomized(folder)


def kustomization_of(document: Path) -> str:
    """The kustomization that a document shows."""
    (text,) = re.findall(r"^```yaml\n(.+?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return str(text)


@functools.cache
def kustomized(folder: Path) -> list[Manifest]:
    """What `kustomize build` prints for a folder; a test that needs it is skipped where there is no kustomize."""
    if shutil.which("kustomize") is None:
        reason = "kustomize is not installed (Debian: apt-get install kustomize)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    done = subprocess.run(["kustomize", "build", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def secrets_for(name: str, documented: dict[str, Secrets]) -> Secrets:
    """What docs/deploy.md makes for a build's cluster; the overlay for trying out brings its own."""
    if name == "dev":
        return {}
    at_site = name in ("edge", "monitored edge", "guarded edge") or name.startswith("draft from")
    added = {"nats-tls": dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), "")} if name.startswith("guarded") else {}
    return documented["edge" if at_site else "cloud"] | added


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def the(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    return found


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    """What runs pods, each with its pod template under spec/template."""
    groups = [pod for each in of_kind(manifests, "LeaderWorkerSet") for pod in group_pods(each)]
    return [*of_kind(manifests, "Deployment", "StatefulSet"), *groups]


def group_pods(leader_worker_set: Manifest) -> Iterator[Manifest]:
    """The pods of all groups, the leader first, by the names and with the labels that the controller gives them."""
    spec, name = leader_worker_set["spec"], leader_worker_set["metadata"]["name"]
    group = spec["leaderWorkerTemplate"]
    for index in range(spec["replicas"]):
        added = {f"{GROUPS}/name": name, f"{GROUPS}/group-index": str(index)}
        for worker in range(group["size"]):
            template = group["workerTemplate" if worker else "leaderTemplate"]
            labelled = template | {"metadata": {"labels": template["metadata"]["labels"] | added}}
            yield {
                "kind": leader_worker_set["kind"],
                "metadata": {"name": f"{name}-{index}-{worker}" if worker else f"{name}-{index}"},
                "spec": {"template": labelled},
            }


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def pod_of(workload: Manifest) -> Manifest:
    """The pod's specification."""
    return dict(workload["spec"]["template"]["spec"])


def labels_of(workload: Manifest) -> dict[str, str]:
    """The labels of a workload's pods."""
    return dict(workload["spec"]["template"]["metadata"]["labels"])


def containers_of(workload: Manifest) -> list[Manifest]:
    """All containers of the pod, those that run first too."""
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def service_of(workload: Manifest) -> str:
    """The package of the service that a workload runs; "" for NATS and for workers of a group."""
    return SERVICES.get(labels_of(workload)["app.kubernetes.io/name"], "")


def is_helper(workload: Manifest) -> bool:
    """Whether its pods only compute for the leader of their group."""
    return labels_of(workload)["app.kubernetes.io/component"] == "worker"


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector takes these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions), selector
    listed = all(labels.get(each["key"]) in each["values"] for each in expressions)
    return listed and bool(selector.get("matchLabels", {}).items() <= labels.items())


def settings_of(container: Manifest, manifests: list[Manifest]) -> dict[str, Any]:
    """A container's variables: their values, or where they come from."""
    found: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        found |= the(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {
        variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container.get("env", [])
    }


def pod_names(workload: Manifest, manifests: list[Manifest]) -> list[str]:
    """The names that pods of a StatefulSet may get, as many as an autoscaler may want; a Deployment's share one."""
    name = workload["metadata"]["name"]
    if workload["kind"] == "Deployment":
        return [labels_of(workload)["app.kubernetes.io/name"]]
    if workload["kind"] == "LeaderWorkerSet":
        return [str(name)]
    scalers = [each for each in of_kind(manifests, "ScaledObject") if target_of(each) == ("StatefulSet", name)]
    numbers = [workload["spec"].get("replicas", 1), *(scaler["spec"]["maxReplicaCount"] for scaler in scalers)]
    return [f"{name}-{ordinal}" for ordinal in range(max(numbers))]


def target_of(scaler: Manifest) -> tuple[str, str]:
    """Kind and name of what an autoscaler scales."""
    reference = scaler["spec"]["scaleTargetRef"]
    return reference["kind"], reference["name"]


def walk(value: object) -> Iterator[Manifest]:
    """Every mapping inside a manifest, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)
