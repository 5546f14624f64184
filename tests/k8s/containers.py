"""The containers of a build as processes of this machine: their commands, environments and mounts.

Invariant: only places are otherwise: paths lie under a folder for each pod, and addresses are loopback's.
"""

from __future__ import annotations

import base64
import math
import sys
from pathlib import Path

from services.local.supervisor import Program
from tests.images.dockerfile import dockerfile
from tests.k8s.manifests import ROOT, Manifest, Secrets, pod_of, settings_of, the

KEPT = ("DSD_", "OMP_", "ORT_", "TORCH")  # variables of an image that its programs read


def value_of(value: str | Manifest, container: Manifest, pod_name: str) -> str:
    """What the kubelet makes of a variable."""
    if isinstance(value, str):
        return value
    if "fieldRef" in value:
        assert value["fieldRef"]["fieldPath"] == "metadata.name"
        return pod_name
    assert value["resourceFieldRef"]["resource"] == "limits.cpu"
    return str(math.ceil(float(container["resources"]["limits"]["cpu"])))


def inside(root: Path, value: str) -> str:
    """A path of the container as one of this machine."""
    return f"{root}{value}" if value.startswith("/") else value


def mount(
    workload: Manifest, container: Manifest, pod_name: str, manifests: list[Manifest], secrets: Secrets, root: Path
) -> None:
    """Writes what a container sees at its mounts, of which that for the models may be there already."""
    volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
    for each in container["volumeMounts"]:
        place, volume = Path(inside(root, each["mountPath"])), volumes[each["name"]]
        files: dict[str, str] = {}
        if "secret" in volume:
            files = content_of(volume["secret"]["secretName"], manifests, secrets)
        elif "configMap" in volume:
            files = the(manifests, "ConfigMap", volume["configMap"]["name"])["data"]
        if "subPathExpr" in each:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(files[pod_name])
            continue
        place.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (place / file).write_text(content)


def content_of(name: str, manifests: list[Manifest], secrets: Secrets) -> dict[str, str]:
    if name in secrets:
        return secrets[name]
    return {key: base64.b64decode(value).decode() for key, value in the(manifests, "Secret", name)["data"].items()}


def program_of(name: str, container: Manifest, manifests: list[Manifest], root: Path, there: dict[str, str]) -> Program:
    """What runs in a container of the pod `name`, whose files are under `root`; `there`: its addresses."""
    kind = container["image"].partition(":")[0].removeprefix("dsd-")
    image = dockerfile(ROOT / "images" / f"{kind}.Dockerfile").image
    (entrypoint,) = image.of("ENTRYPOINT")
    python, *words = container.get("command") or entrypoint.argv
    assert python == "python"
    of_image = {variable: value for variable, value in image.env.items() if variable.startswith(KEPT)}
    settings = {
        variable: value_of(value, container, name) for variable, value in settings_of(container, manifests).items()
    }
    env = {variable: inside(root, value) for variable, value in (of_image | settings).items()}
    return Program(name, (sys.executable, *words, *container.get("args", [])), env | there)
