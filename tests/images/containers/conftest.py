"""All images that a machine without a GPU can build, and the overlay for trying out made of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.podman import Build, pod_name
from services.local.nats_server import find_binary
from tests.e2e.joining.system import Place, another_namespace
from tests.images.containers import pip
from tests.images.containers.base_image import base_image
from tests.images.containers.memory import MemoryWatch, requested_memory
from tests.images.containers.podman import Podman
from tests.images.replay import ROOT
from tests.k8s.manifests import DOCUMENT, K8S, Manifest, containers_of, kustomized, workloads

NAMES = ("tokenizer", "controller", "gateway", "drafter", "verifier", "models")
VERSION = "0.1.0"
REPORT = ROOT / "build" / "images.md"
STEPS = ("play", "draft", "replace the key", "draft with the new key", "end")  # of docs/deploy.md
STEP_S = 900
NATS_STEPS = "FROM {base}\nCOPY nats-server /usr/local/bin/\n"  # the reloader needs a shell


@dataclass
class Images:
    """What was built, by role."""

    base: str
    tags: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes above the base
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Overlay:
    """The overlay for trying out, as the commands of docs/deploy.md start it. place: another network namespace."""

    podman: Podman
    manifests: list[Manifest]
    build: Build
    place: Place
    folder: Path  # where the commands run, and their home
    memory: MemoryWatch
    seconds: float = 0.0  # from nothing to a ready gateway, models made

    @property
    def pods(self) -> list[str]:
        return [pod_name(workload) for workload in workloads(self.manifests)]

    def url(self, pod: str) -> str:
        return f"http://{self.place.reached_at}:{self.build.ports[pod]}"

    def command(self, step: str, *prefix: str) -> list[str]:
        """Those of a step. prefix: of them all."""
        shown = re.findall(r"^```shell\n(.+?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
        block = dict(zip(STEPS, shown, strict=True))[step]
        block = block.replace("deploy.podman", f"deploy.podman --nats-image {self.build.nats_image}")
        return [*prefix, "bash", "-euo", "pipefail", "-c", block]

    @property
    def environment(self) -> dict[str, str]:
        """What the commands of the page need: an operator's home and $ADDRESS, $DRAFT."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = {"HOME": str(self.folder), "PATH": path, "PYTHONPATH": str(ROOT)}
        return self.podman.environment | ours | {"ADDRESS": self.place.reached_at, "DRAFT": str(self.folder / "draft")}

    def run(self, step: str) -> None:
        command = self.command(step)
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=STEP_S
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"

    def stop(self, container: str) -> int:
        """Ends a container as the kubelet does, within its pod's time; its status."""
        self.podman("stop", container)
        return self.podman.status(container)

    def peaks(self) -> dict[str, int]:
        """Bytes, by the container's name."""
        names = [
            line.split()
            for line in self.podman("ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Names}}").splitlines()
        ]
        return {name: self.memory.peaks[ident] for ident, name in names if ident in self.memory.peaks}


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    if shutil.which("podman") is None or os.geteuid() != 0:
        reason = "podman for root is needed (Debian: apt-get install podman runc catatonit mmdebstrap iproute2)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return Podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def images(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Images:
    found = Images(base_image(podman, tmp_path_factory.mktemp("base")))
    mounts = pip.mounts(tmp_path_factory.mktemp("pip"))
    arguments = {"PYTHON_IMAGE": found.base}
    for name in NAMES:
        started = time.monotonic()
        found.tags[name] = f"localhost/dsd-{name}:{VERSION}"
        podman.build(found.tags[name], ROOT / "images" / f"{name}.Dockerfile", ROOT, arguments, mounts)
        found.seconds[name] = time.monotonic() - started
        found.sizes[name] = podman.size(found.tags[name]) - podman.size(found.base)
    return found


@pytest.fixture(scope="session")
def nats_image(podman: Podman, images: Images, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The one of the manifests where a registry gives it, else the nats-server of the tests alone."""
    found = [each["image"] for workload in workloads(dev()) for each in containers_of(workload)]
    (wanted,) = {image for image in found if image.startswith("nats:")}
    if podman.run("pull", "--quiet", f"docker.io/library/{wanted}").returncode == 0:
        return f"docker.io/library/{wanted}"
    folder = tmp_path_factory.mktemp("nats")
    shutil.copy(find_binary(), folder / "nats-server")
    (folder / "Containerfile").write_text(NATS_STEPS.format(base=images.base))
    podman.build("localhost/dsd-nats", folder / "Containerfile", folder, {}, [])
    return "localhost/dsd-nats"


@pytest.fixture(scope="session")
def overlay(
    podman: Podman,
    images: Images,
    nats_image: str,
    default_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Overlay]:
    folder = tmp_path_factory.mktemp("overlay")
    (folder / "k8s").symlink_to(K8S)
    (folder / "draft").symlink_to(default_models / "draft-int8")
    with another_namespace() as place, MemoryWatch() as memory:
        build = Build(dev(), place.reached_at, nats_image)
        found = Overlay(podman, dev(), build, place, folder, memory)
        try:
            started = time.monotonic()
            found.run("play")
            found.seconds = time.monotonic() - started
            yield found
            write_report(REPORT, images, found)
            found.run("end")
        finally:
            podman.run("kube", "down", "--force", str(folder / "dsd.yaml"))


def dev() -> list[Manifest]:
    return kustomized(K8S / "overlays" / "dev")


def write_report(file: Path, images: Images, overlay: Overlay) -> None:
    """Tables for docs/reports/deploy.md."""
    lines = ["| image | above the base, MB | build, s |", "| --- | --- | --- |"]
    lines += [f"| {name} | {images.sizes[name] / 1e6:.1f} | {images.seconds[name]:.0f} |" for name in NAMES]
    requests, peaks = requested_memory(overlay.manifests), overlay.peaks()
    lines += ["", "| container | peak, MiB | requested, MiB | status |", "| --- | --- | --- | --- |"]
    for name in sorted(requests):
        peak, asked = peaks.get(name, 0) / 2**20, requests[name] / 2**20
        lines.append(f"| {name} | {peak:.0f} | {asked:.0f} | {overlay.podman.status(name)} |")
    lines += ["", f"The gateway is ready {overlay.seconds:.0f} s after the first command."]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
