"""`kustomize build` of everything in k8s/ works; schemas of Kubernetes and of custom resources describe the result."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest

from tests.k8s.machine import Built
from tests.k8s.manifests import BUILDS, DOCUMENT, K8S, OVERLAYS, ROOT, Manifest, of_kind, the, title
from tests.k8s.schemas.validation import VERSIONS, complaints

KUSTOMIZATIONS = sorted(K8S.rglob("kustomization.yaml"))
TRIGGERS = {  # what KEDA's schema leaves to its scalers: the fields that must be, and others
    "prometheus": (
        {"serverAddress", "query", "threshold"},
        {"activationThreshold", "ignoreNullValues", "namespace", "timeout", "unsafeSsl"},
    ),
    "cpu": ({"value"}, {"containerName"}),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_build_keeps_to_the_schemas_of_kubernetes_and_of_custom_resources(
    built: Built, name: str, version: str
) -> None:
    assert [told for manifest in built(name) for told in complaints(manifest, version)] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["many nodes", "own pair"])
def test_a_field_that_is_not_known_is_found(built: Built, name: str, version: str) -> None:
    for manifest in built(name):
        place = "spec" if "spec" in manifest else "metadata"
        misspelt = manifest | {place: manifest[place] | {"sepc": 1}}
        assert any("'sepc' was unexpected" in told for told in complaints(misspelt, version)), title(manifest)


@pytest.mark.parametrize("role", ["leader", "worker"])
def test_a_field_that_a_group_s_pods_do_not_have_is_found(built: Built, role: str) -> None:
    misspelt = copy.deepcopy(the(built("many nodes"), "LeaderWorkerSet", "verifier"))
    misspelt["spec"]["leaderWorkerTemplate"][f"{role}Template"]["spec"]["toleration"] = []
    (told,) = complaints(misspelt, VERSIONS[0])
    assert "'toleration' was unexpected" in told


def test_three_versions_of_kubernetes_are_looked_at_the_oldest_that_is_supported_first() -> None:
    assert len(set(VERSIONS)) == 3
    assert f"Kubernetes {VERSIONS[0].removesuffix('.0')} or newer" in DOCUMENT.read_text()
    assert VERSIONS[-1] == kubernetes_validate.latest_version()


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Certificate", {"secretName": "x", "issuerRef": {"name": "ca"}, "dnsNames": ["nats.dsd.example"]}),
        ("Issuer", {"ca": {"secretName": "ca"}}),
        ("ClusterIssuer", {"selfSigned": {}}),
    ],
)
def test_resources_of_cert_manager_have_a_schema(kind: str, spec: Manifest) -> None:
    good = {"apiVersion": "cert-manager.io/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}
    assert complaints(good, VERSIONS[0]) == []
    assert complaints(good | {"spec": spec | {"sepc": 1}}, VERSIONS[0])


@pytest.mark.parametrize("name", BUILDS)
def test_a_trigger_has_what_keda_s_scaler_reads(built: Built, name: str) -> None:
    for scaler in of_kind(built(name), "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            required, more = TRIGGERS[trigger["type"]]
            assert required <= set(trigger["metadata"]) <= required | more


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(K8S)))
def test_a_kustomization_says_in_its_first_line_what_it_is(path: Path) -> None:
    assert re.match(r"# [A-Z].{20,}\.$", path.read_text().splitlines()[0])


def test_every_file_is_part_of_a_kustomization() -> None:
    for folder in (path.parent for path in KUSTOMIZATIONS):
        text = (folder / "kustomization.yaml").read_text()
        for file in folder.iterdir():
            is_for_a_secret = file.suffix == ".conf" and "nats_users rights" in file.read_text()
            assert file.is_dir() or is_for_a_secret or file.name in (text + "kustomization.yaml"), file.relative_to(
                ROOT
            )


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_is_in_the_namespace_dsd(built: Built, name: str) -> None:
    for manifest in built(name):
        if manifest["kind"] != "PriorityClass":  # of the whole cluster
            place = manifest["metadata"].get("namespace", manifest["metadata"]["name"])
            assert place == "dsd", title(manifest)


@pytest.mark.parametrize("name", [name for name in BUILDS if name != "dev"])
def test_only_the_overlay_for_trying_out_holds_keys(built: Built, name: str) -> None:
    assert of_kind(built(name), "Secret") == []


def test_seeds_are_in_the_repository_as_examples_only() -> None:
    """Wherever a file of k8s/ or docs/ has a seed in it, it lies in the folder that says so."""
    files = [path for folder in (K8S, ROOT / "docs") for path in folder.rglob("*") if path.is_file()]
    seeds = [path for path in files if holds_a_seed(path)]
    examples = K8S / "overlays" / "dev" / "example-keys"
    assert seeds
    assert all(examples in path.parents for path in seeds)
    text = "".join(path.read_text() for path in KUSTOMIZATIONS if path.parent.name != "dev")
    assert "example-keys" not in text
    assert "secretGenerator" not in text


def holds_a_seed(path: Path) -> bool:
    return re.search(rb"\bS[UAONC][A-Z2-7]{56}\b", path.read_bytes()) is not None
