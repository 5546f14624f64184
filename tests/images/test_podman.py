"""python -m deploy.podman: the dev overlay's containers stay confined as they are, and other input is refused."""

from __future__ import annotations

import subprocess
import sys

import yaml

from tests.images.replay import ROOT
from tests.k8s.manifests import K8S, Manifest, containers_of, kustomized, pod_of, workloads


def converted(manifests: list[Manifest], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.podman", *argv]
    text = yaml.safe_dump_all(manifests)
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)


def test_containers_keep_their_limits_and_listen_on_one_address_each_with_a_port() -> None:
    manifests = kustomized(K8S / "overlays" / "dev")
    done = converted(manifests, "--listen", "192.0.2.1")
    pods = [each["spec"] for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Pod"]
    made = [each for pod in pods for each in [*pod.get("initContainers", []), *pod["containers"]]]
    kept = ("name", "resources", "securityContext", "command")
    assert [[each.get(field) for field in kept] for each in made] == [
        [each.get(field) for field in kept] for workload in workloads(manifests) for each in containers_of(workload)
    ]
    originals = [each for workload in workloads(manifests) for each in containers_of(workload)]
    assert [pod["securityContext"] for pod in pods] == [
        pod_of(each)["securityContext"] for each in workloads(manifests)
    ]
    for each, original in zip(made, originals, strict=True):
        assert each.get("args", [])[: len(original.get("args", []))] == original.get("args", [])
    settings = [{each["name"]: each.get("value") for each in pod["containers"][0]["env"]} for pod in pods]
    ours = [each for each in settings if "DSD_HTTP_PORT" in each]
    assert {each["DSD_HTTP_HOST"] for each in ours} == {"192.0.2.1"}
    assert sorted(each["DSD_HTTP_PORT"] for each in ours) == ["8080", "8081", "8082", "8083"]
    (gateway,) = [each for each in ours if each["DSD_NAME"] == "gateway"]
    assert gateway["DSD_HTTP_PORT"] == "8080"


def test_input_without_all_that_the_dev_overlay_brings_is_refused() -> None:
    done = converted([])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("python -m deploy.podman: no manifests on standard input: kustomize build")
    done = converted(kustomized(K8S / "overlays" / "cloud"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "only the overlay dev brings all that it needs" in done.stderr
