"""All images that a machine without a GPU can build, and the overlay for trying out made of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from services.local.nats_server import find_binary, free_port
from tests.images.containers import pip
from tests.images.containers.base_image import base_image
from tests.images.containers.kube import Addresses, documents, images_of, name_of, requested_memory
from tests.images.containers.memory import MemoryWatch
from tests.images.containers.podman import Podman
from tests.images.replay import ROOT
from tests.k8s.manifests import K8S, Manifest, kustomized, service_of, workloads

NAMES = ("tokenizer", "controller", "gateway", "drafter", "verifier", "models")
VERSION = "0.1.0"
REPORT = ROOT / "build" / "images.md"
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
    """The overlay for trying out, as containers."""

    podman: Podman
    manifests: list[Manifest]
    addresses: Addresses
    memory: MemoryWatch
    seconds: float = 0.0  # from nothing to all containers running, models made
    statuses: dict[str, int] = field(default_factory=dict)  # of containers that have ended

    @property
    def pods(self) -> list[str]:
        return [name_of(workload, self.manifests) for workload in workloads(self.manifests)]

    def url(self, pod: str) -> str:
        return f"http://127.0.0.1:{self.addresses.http[pod]}"

    def stop(self, container: str) -> int:
        """Ends a container as the kubelet does, within its pod's time; its status."""
        self.podman("stop", container)
        self.statuses[container] = self.podman.status(container)
        return self.statuses[container]

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
        reason = "podman for root is needed (Debian: apt-get install podman runc catatonit mmdebstrap)"
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
    (wanted,) = [image for image in images_of(kustomized(K8S / "overlays" / "dev")) if image.startswith("nats:")]
    if podman.run("pull", "--quiet", f"docker.io/library/{wanted}").returncode == 0:
        return f"docker.io/library/{wanted}"
    folder = tmp_path_factory.mktemp("nats")
    shutil.copy(find_binary(), folder / "nats-server")
    (folder / "Containerfile").write_text(NATS_STEPS.format(base=images.base))
    podman.build("localhost/dsd-nats", folder / "Containerfile", folder, {}, [])
    return "localhost/dsd-nats"


@pytest.fixture(scope="module")
def overlay(
    podman: Podman, images: Images, nats_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Overlay]:
    manifests = kustomized(K8S / "overlays" / "dev")
    http = {name_of(each, manifests): free_port() for each in workloads(manifests) if service_of(each)}
    addresses = Addresses(free_port(), free_port(), http)
    local = {f"dsd-{name}:{VERSION}": tag for name, tag in images.tags.items()}
    local |= {image: nats_image for image in images_of(manifests) if image.startswith("nats:")}
    file = tmp_path_factory.mktemp("overlay") / "dev.yaml"
    file.write_text(yaml.safe_dump_all(documents(manifests, addresses, local)))
    with MemoryWatch() as memory:
        found = Overlay(podman, manifests, addresses, memory)
        try:
            started = time.monotonic()
            podman("kube", "play", "--replace", str(file))
            found.seconds = time.monotonic() - started
            yield found
            write_report(REPORT, images, found)
        finally:
            podman.run("kube", "down", "--force", str(file))


def write_report(file: Path, images: Images, overlay: Overlay) -> None:
    """Tables for docs/reports/deploy.md."""
    lines = ["| image | above the base, MB | build, s |", "| --- | --- | --- |"]
    lines += [f"| {name} | {images.sizes[name] / 1e6:.1f} | {images.seconds[name]:.0f} |" for name in NAMES]
    requests, peaks = requested_memory(overlay.manifests), overlay.peaks()
    lines += ["", "| container | peak, MiB | requested, MiB | status |", "| --- | --- | --- | --- |"]
    for name in sorted(requests):
        peak, asked = peaks.get(name, 0) / 2**20, requests[name] / 2**20
        lines.append(f"| {name} | {peak:.0f} | {asked:.0f} | {overlay.podman.status(name)} |")
    lines += ["", f"All containers run {overlay.seconds:.0f} s after `podman kube play`."]
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
