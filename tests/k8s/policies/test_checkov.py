"""Checkov's policies for Kubernetes hold for every build, but for findings that accepted.yaml argues."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.k8s.machine import Built
from tests.k8s.manifests import BUILDS, ROOT, Manifest
from tests.k8s.schemas.validation import templates

ACCEPTED: dict[str, str] = yaml.safe_load(Path(__file__).with_name("accepted.yaml").read_text())
VENV = ROOT / ".venv-checkov" / "bin"

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@dataclass(frozen=True, order=True)
class Finding:
    """A policy that does not hold. `where`: build, kind and name."""

    check: str
    where: str
    told: str

    @property
    def keys(self) -> set[str]:
        """What accepted.yaml may call it."""
        return {self.check, f"{self.check} {self.where.partition(': ')[2]}"}


def findings(folder: Path) -> list[Finding]:
    """Of all manifests in a folder of <build>.yaml. It asks nobody outside."""
    checkov = shutil.which("checkov", path=os.pathsep.join([str(VENV), os.environ["PATH"]]))
    if checkov is None:
        pytest.skip("checkov is not installed: make test-policies")
    command = [checkov, "--directory", str(folder), "--framework", "kubernetes", "--output", "json", "--skip-download"]
    done = subprocess.run([*command, "--quiet", "--compact"], capture_output=True, text=True, timeout=240, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0, done.stderr
    assert report["summary"]["passed"] > 0
    return sorted({_finding(each) for each in report["results"]["failed_checks"]})


def _finding(told: Manifest) -> Finding:
    kind, _, name = told["resource"].split(".")[:3]
    return Finding(told["check_id"], f"{Path(told['file_path']).stem}: {kind} {name}", told["check_name"])


def as_checkov_reads(manifests: list[Manifest]) -> Iterator[Manifest]:
    """A custom resource's pods as Pods, which checkov knows."""
    for manifest in manifests:
        yield manifest
        for template in templates(manifest) if manifest["kind"] == "LeaderWorkerSet" else ():
            pod = {"name": template["metadata"]["name"], "namespace": "dsd"} | template["template"]["metadata"]
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": template["template"]["spec"]}


def written(folder: Path, name: str, manifests: list[Manifest]) -> Path:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(as_checkov_reads(manifests)))
    return folder


def test_what_checkov_finds_is_argued_and_what_is_argued_is_found(built: Built, tmp_path: Path) -> None:
    for name in BUILDS:
        written(tmp_path, name, built(name))
    found = findings(tmp_path)
    assert [each for each in found if not each.keys & ACCEPTED.keys()] == []
    assert ACCEPTED.keys() == {key for each in found for key in each.keys & ACCEPTED.keys()}


def test_what_is_worse_is_found(built: Built, tmp_path: Path) -> None:
    """Checkov does look: at a container that may become root, in a group of pods too."""
    worse = json.loads(json.dumps(built("many nodes")))
    (group,) = [each for each in worse if each["kind"] == "LeaderWorkerSet"]
    (container,) = group["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    container["securityContext"]["allowPrivilegeEscalation"] = True
    found = findings(written(tmp_path, "worse", worse))
    assert "CKV_K8S_20 Pod workerTemplate" in {key for each in found for key in each.keys}
